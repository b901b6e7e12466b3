"""The HTML report of a run: one file, no scripts, nothing fetched, pictures inside.

Reads only the run folder: summary.json, metrics.jsonl, episodes/, config.yaml. Invariant: what a policy wrote is data;
the template escapes everything that is not marked as our own SVG, and the page's content policy forbids scripts.
Called by the composition root at the end of a run and by `medvista-ray report RUN_DIR`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from medvista_ray.reports import gallery, plots, view
from medvista_ray.reports.files import write_atomic
from medvista_ray.reports.plots import Series
from medvista_ray.reports.statistics import by_arm
from medvista_ray.reports.summary import (
    CONFIG_NAME,
    EPISODES_NAME,
    REPORT_NAME,
    RunSummary,
    read_metrics,
    read_summary,
)
from medvista_ray.reports.trajectory import EpisodeRecord, read_episodes

TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Curve:
    """One chart over the training steps: metric names with their legend, and the fixed bounds if any."""

    title: str
    metrics: tuple[tuple[str, str], ...]
    bounds: tuple[float, float] | None = None
    floor: float | None = 0.0


CURVES = (
    Curve("Reward", (("reward_mean", "mean reward"),), floor=None),
    Curve("Training accuracy", (("accuracy", "share right"), ("format_ok", "well formed")), bounds=(0.0, 1.0)),
    Curve("Tool calls per episode", (("calls_per_episode", "calls"),)),
    Curve("Staleness (versions)", (("staleness_mean", "mean"), ("staleness_max", "largest"))),
    Curve("Share of time idle", (("idle_generator", "generator"), ("idle_learner", "learner")), bounds=(0.0, 1.0)),
    Curve("Seconds per step", (("step_s", "step"),)),
    Curve("Weight update (s)", (("weight_update_s", "load"), ("weight_pause_s", "generation paused"))),
    Curve("Sampled tokens per second", (("tokens_per_s", "tok/s"),)),
    Curve("Entropy of the policy", (("entropy", "nats per token"),)),
    Curve("Engine against learner (KL)", (("mismatch_kl", "nats per token"),)),
    Curve("Gradient norm", (("grad_norm", "before clipping"),)),
    Curve("Corrections", (("clip_frac", "ratio clipped"), ("tis_frac", "weight truncated"))),
)


def write_report(run_dir: Path) -> Path:
    """Write report.html into a finished run's folder, atomically. Raises RunFolderError if there is no summary."""
    summary = read_summary(run_dir)
    records = list(read_episodes(run_dir / EPISODES_NAME))
    metrics = read_metrics(run_dir)
    template = _environment().get_template("page.html.j2")
    page = template.render(
        summary=summary,
        css=Markup((TEMPLATES / "page.css").read_text()),
        arm_names=view.ARM_NAMES,
        run_lines=list(view.run_lines(summary)),
        charts=_charts(metrics),
        bars=_bars(summary),
        episodes=_episodes(run_dir, records, summary.seed),
        config=_read(run_dir / CONFIG_NAME),
        num_logged=len(records),
        num_test=max((interval.n for interval in summary.accuracy.values()), default=0),
        num_subjects=len({record.subject for record in records if record.arm in view.ARM_NAMES}),
    )
    path = run_dir / REPORT_NAME
    write_atomic(path, page.encode("utf-8", "replace"))
    return path


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,  # every value, whatever the template's name
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters: dict[str, Callable[..., Any]] = environment.filters
    filters |= {"percent": view.percent, "points": view.points, "duration": view.duration, "share": view.share}
    return environment


def _charts(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, Markup, tuple[str, ...]]]:
    """Title, SVG and legend of each curve that has data."""
    charts: list[tuple[str, Markup, tuple[str, ...]]] = []
    for curve in CURVES:
        series = [_series(metrics, key, name) for key, name in curve.metrics]
        series = [item for item in series if any(value is not None for value in item.y)]
        if svg := plots.line_chart(series, f"{curve.title} by step", curve.bounds, curve.floor):
            names = tuple(item.name for item in series) if len(curve.metrics) > 1 else ()
            charts.append((curve.title, Markup(svg), names))
    return charts


def _series(metrics: Sequence[Mapping[str, Any]], key: str, name: str) -> Series:
    values = [step.get(key) for step in metrics]
    numbers = [float(v) if isinstance(v, int | float) and math.isfinite(v) else None for v in values]
    return Series(name, [float(step["step"]) for step in metrics], numbers)


def _bars(summary: RunSummary) -> dict[str, Markup]:
    names = view.ARM_NAMES
    arms = {names.get(arm, arm): interval for arm, interval in summary.accuracy.items()}
    groups = {
        family.replace("_", " "): {names.get(arm, arm): interval for arm, interval in row.arms.items()}
        for family, row in summary.families.items()
    }
    chance = {family.replace("_", " "): row.chance for family, row in summary.families.items()}
    return {
        "arms": Markup(plots.interval_bars(arms, "Accuracy by arm with 95 % intervals") if arms else ""),
        "families": Markup(plots.grouped_bars(groups, chance, list(arms), "Accuracy by family") if groups else ""),
        "staleness": Markup(plots.histogram(summary.staleness_histogram, summary.eta, "Staleness of trained tokens")),
    }


def _episodes(run_dir: Path, records: Sequence[EpisodeRecord], seed: int) -> list[gallery.DrawnEpisode]:
    """A dozen of the trained policy's test episodes; of an earlier arm, or of training, if there are none."""
    arms = by_arm(records)
    training = [record for record in records if record.arm not in view.ARM_NAMES]
    for pool in (arms.get("rl", []), arms.get("sft", []), training, arms.get("naive", []), arms.get("no_tools", [])):
        if chosen := gallery.choose(pool, seed=seed):
            return [gallery.draw(record, run_dir / EPISODES_NAME, arms) for record in chosen]
    return []


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""
