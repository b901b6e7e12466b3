"""What asynchrony is worth: the same policy, batch, tools and cores in the modes sync, one_step_off and async:

    python benchmarks/pipeline.py --json pipeline.json [--engine simulated timed vllm] [--modes sync one_step_off async]
        [--seeds 0 1 2] [--num-steps 8] [--cold-start 400] [--policy FOLDER]

`vllm` is the real thing: vLLM, the shipped tools, the learner's GRPO steps on the shipped tiny base after a short cold start
(the base as it is never calls a tool). `timed` runs the same coordinator, loop and actors' calls over an engine and a learner
that only take time, so that two busy cores do not blur what the order of events alone makes; `simulated` runs the loop over the
same two in simulated time, without Ray. In all a tool call waits first, log-normal with a mean of 300 ms and a 99th percentile
of 3 s. Starts a Ray of its own and ends it.
"""

from __future__ import annotations

import json
import shutil
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.harness import machine, own_ray, write_figures
from medvista_ray.config import TrainConfig, load_config

if TYPE_CHECKING:
    from benchmarks.pipeline_systems import System

MODES = ("sync", "one_step_off", "async")
Marks = list[tuple[dict[str, float], float, float]]
"""Per step: its record, when it ended, and for how many seconds the engines had been busy then."""
POLL_S = 0.2
TIMEOUT_S = 7200.0
FILTERED = 0.3
"""Share of groups without signal that the timed engine makes; the real one makes its own."""
SLOW = ("grpo.num_minibatches=4", "grpo.kl_coef=0.001", "learner.activation_checkpointing=true")
"""What makes the real learner the bottleneck: two forward passes more for the anchors, and the backward pass's own."""
TRAIN_S = {"generator": 2.0, "learner": 8.0}
"""Of the timed learner, by who is the bottleneck: a batch takes the timed engine about 4.6 s."""


def configuration(args: Namespace, mode: str, seed: int, overrides: Sequence[str] = ()) -> TrainConfig:
    """Everything but the mode and the seed is the same."""
    return load_config(
        None,
        [
            f"flow.mode={mode}",
            f"seed={seed}",
            f"policy.path={args.policy}",
            "policy.train_vision=false",
            "bench.num_train=800",
            "rollout={temperature: 0.8, max_calls: 3, tool_prompt: required}",
            "generator.max_num_seqs=192",
            "sft={num_epochs: 2, batch_size: 8, learning_rate: 1.0e-3}",
            "expert.concurrency=8",
            # The main job's rate and warm-up: at 1e-4 after two steps of warm-up, weights three versions old broke the policy.
            f"grpo={{groups_per_step: {args.groups}, group_size: 8, learning_rate: 8.0e-5, warmup_steps: 10, adam_eps: 1.0e-6}}",
            f"flow.max_running_groups={(args.eta + 1) * args.groups}",
            *([f"flow.eta={args.eta}"] if mode == "async" else []),
            "flow.checkpoint_every=1000000",
            *overrides,
        ],
    )


@dataclass(frozen=True)
class Window:
    """Which steps of a run are measured, in all modes alike: those in between the filling of the pipeline, whose first
    batches are in part made before the clock starts, and its emptying, when nothing new is admitted and the learner has
    the machine for itself."""

    num_steps: int
    num_lead: int
    num_tail: int

    @classmethod
    def of(cls, args: Namespace) -> Window:
        """Eta batches are on their way at either end."""
        return cls(args.num_steps, args.eta + 1, args.eta + 2)

    @property
    def total(self) -> int:
        """Steps of the run."""
        return self.num_lead + self.num_steps + self.num_tail

    def cut(self, marks: Marks) -> Marks:
        """From the end of the last step before it to the end of its last."""
        return marks[self.num_lead - 1 : self.num_lead + self.num_steps]


class Bench:
    """Runs of one system, one after the other, each under versions of its own."""

    def __init__(self, system: System, window: Window) -> None:
        self._system = system
        self._window = window
        self._version = 1

    def run(self, config: TrainConfig) -> dict[str, Any]:
        """One run from the first weights; its figures over the window."""
        import ray

        from actors.coordinator import CoordinatorActor

        self._system.rewind()
        folder = tempfile.mkdtemp(prefix="mvpipeline")
        actor: Any = CoordinatorActor
        coordinator = actor.remote(
            config, self._system.tasks, self._system.generators, self._system.learner, folder, self._version
        )
        run = coordinator.run.remote(self._window.total)
        marks: Marks = []
        while not ray.wait([run], timeout=POLL_S)[0]:
            marks += self._new_marks(coordinator, len(marks))
        status = ray.get(run, timeout=TIMEOUT_S)
        self._version = status["version"] + 1
        ray.kill(coordinator)
        shutil.rmtree(folder, ignore_errors=True)
        return figures(self._window.cut(marks), status, config)

    def _new_marks(self, coordinator: Any, num_known: int) -> Marks:
        """Per step that is new: its record, the time now, and the engines' mean busy seconds."""
        import ray

        records = ray.get(coordinator.records.remote(num_known), timeout=120)
        if not records:
            return []
        stats = ray.get([actor.stats.remote() for actor in self._system.generators.values()], timeout=120)
        busy_s = statistics.mean(stat["busy_s"] for stat in stats)
        return [(record, time.monotonic(), busy_s) for record in records]


def figures(marks: Marks, status: dict[str, Any], config: TrainConfig) -> dict[str, Any]:
    """Of one run, between the first of the marks and the last."""
    (first, start_s, busy_before), (last, end_s, busy_after) = marks[0], marks[-1]
    records = [record for record, _, _ in marks[1:]]
    seconds = last["time_s"] - first["time_s"]
    late = records[len(records) // 2 :]

    def idle(name: str) -> float:
        """Loop's figures are shares of the time since its beginning."""
        return (last[name] * last["time_s"] - first[name] * first["time_s"]) / seconds

    def per_s(name: str) -> float:
        return sum(record[name] for record in records) / seconds

    pauses_s = sum(record.get("weight_pause_s", 0.0) + record["publish_s"] for record in records)
    return {
        "trained_episodes_per_s": len(records) * config.grpo.groups_per_step * config.grpo.group_size / seconds,
        "sampled_episodes_per_s": per_s("num_episodes"),
        "trained_tokens_per_s": per_s("num_trained_tokens"),
        "sampled_tokens_per_s": sum(record.get("tokens_per_s", 0.0) * record["step_s"] for record in records) / seconds,
        "generator_idle_frac": max(0.0, 1.0 - (busy_after - busy_before) / (end_s - start_s)),
        "generator_without_groups_frac": idle("idle_generator"),
        "learner_idle_frac": idle("idle_learner"),
        "sync_overhead_frac": pauses_s / seconds,
        "step_s": seconds / len(records),
        "train_s": statistics.mean(record["train_s"] for record in records),
        "filtered_frac": (last["num_filtered"] - first["num_filtered"])
        / max(1.0, last["num_submitted"] - first["num_submitted"]),
        "calls_per_episode": statistics.mean(record.get("calls_per_episode", 0.0) for record in records),
        "reward": statistics.mean(record["reward_mean"] for record in late if "reward_mean" in record),
        "staleness": {str(age): num for age, num in status["staleness_histogram"].items()},
        "seconds": seconds,
    }


def median_run(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the seeds; histograms added up."""
    staleness: dict[str, int] = {}
    for run in runs:
        for age, num in run["staleness"].items():
            staleness[age] = staleness.get(age, 0) + num
    return {name: round(statistics.median(run[name] for run in runs), 4) for name in runs[0] if name != "staleness"} | {
        "staleness": staleness,
        "rewards": [round(run["reward"], 4) for run in runs],
    }


def compare(modes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The ratios between the modes that were run."""
    found: dict[str, Any] = {}
    best = modes.get("async")
    if best is None:
        return found
    for other in ("sync", "one_step_off"):
        if other in modes:
            found[f"async_over_{other}"] = round(best["trained_episodes_per_s"] / modes[other]["trained_episodes_per_s"], 3)
    if "sync" in modes:
        gap = statistics.mean(best["rewards"]) - statistics.mean(modes["sync"]["rewards"])
        spreads = [statistics.stdev(mode["rewards"]) for mode in (best, modes["sync"]) if len(mode["rewards"]) > 1]
        found["reward_gap_at_equal_samples"] = round(gap, 4)
        found["reward_noise"] = round(2.0 * (sum(s**2 for s in spreads) / len(best["rewards"])) ** 0.5, 4) if spreads else None
    return found | {"staleness": best["staleness"]}


def measure(args: Namespace, make: Callable[[TrainConfig, str], System], progress: str) -> dict[str, Any]:
    """All modes and seeds with a generator that is the bottleneck, then async alone with a learner that is."""
    modes: dict[str, list[dict[str, Any]]] = {mode: [] for mode in args.modes}
    system = make(configuration(args, "async", 0), "generator")
    bench = Bench(system, Window.of(args))
    for seed in args.seeds:
        for mode in args.modes:  # seed by seed: what else the machine does meets all modes alike
            modes[mode].append(bench.run(configuration(args, mode, seed)))
            print(progress, mode, seed, json.dumps(modes[mode][-1]), flush=True)
    system.close()
    result: dict[str, Any] = {"modes": {mode: median_run(runs) for mode, runs in modes.items()}}
    result |= compare(result["modes"])
    if "async" in modes:
        result["generator_idle_frac"] = result["modes"]["async"]["generator_idle_frac"]
    if not args.skip_learner_bound:
        system = make(configuration(args, "async", 0, SLOW), "learner")
        bench = Bench(system, Window.of(args))
        runs = [bench.run(configuration(args, "async", seed, SLOW)) for seed in args.seeds]
        system.close()
        result["learner_bound"] = median_run(runs)
        result["learner_idle_frac"] = result["learner_bound"]["learner_idle_frac"]
    return result


def simulated(args: Namespace) -> dict[str, Any]:
    """The loop alone, in simulated time; no Ray, no coordinator."""
    from benchmarks.pipeline_simulated import simulate_run

    window = Window.of(args)

    def runs(mode: str, bound: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for seed in args.seeds:
            config = configuration(args, mode, seed)
            marks, status = simulate_run(config, window.total, TRAIN_S[bound], FILTERED)
            found.append(figures(window.cut(marks), status, config))
        return found

    result: dict[str, Any] = {"modes": {mode: median_run(runs(mode, "generator")) for mode in args.modes}}
    result |= compare(result["modes"])
    if "async" in args.modes:
        result["learner_bound"] = median_run(runs("async", "learner"))
        result["generator_idle_frac"] = result["modes"]["async"]["generator_idle_frac"]
        result["learner_idle_frac"] = result["learner_bound"]["learner_idle_frac"]
    return result


def real(args: Namespace) -> dict[str, Any]:
    """vLLM and the learner."""
    from benchmarks.pipeline_systems import RealSystem

    return measure(args, lambda config, _: RealSystem(config, args.cold_start), "vllm")


def timed(args: Namespace) -> dict[str, Any]:
    """Engine and learner that only take time."""
    from benchmarks.pipeline_systems import TimedSystem

    return measure(args, lambda config, bound: TimedSystem(config, TRAIN_S[bound], FILTERED), "timed")


ENGINES: dict[str, Callable[[Namespace], dict[str, Any]]] = {"simulated": simulated, "timed": timed, "vllm": real}


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--engine", choices=tuple(ENGINES), nargs="+", default=list(ENGINES), help="systems to run")
    parser.add_argument("--modes", choices=MODES, nargs="+", default=list(MODES), help="modes to run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the order of tasks (default: 0 1 2)")
    parser.add_argument("--num-steps", type=int, default=8, help="measured steps of each run (default: 8)")
    parser.add_argument("--groups", type=int, default=8, help="groups of 8 episodes in a batch (default: 8)")
    parser.add_argument("--eta", type=int, default=3, help="staleness bound of async (default: 3)")
    parser.add_argument("--policy", default="tiny", help="base of the real system (default: the shipped one)")
    parser.add_argument("--cold-start", type=int, default=400, help="expert trajectories of its cold start; 0: none")
    parser.add_argument("--skip-learner-bound", action="store_true", help="leave the runs with a slow learner out")
    return parser.parse_args()


def main() -> int:
    """Run; the top-level figures are those of the real system if it was run."""
    args = parse()
    found = machine() | {
        "num_steps": args.num_steps,
        "num_seeds": len(args.seeds),
        "eta": args.eta,
        "episodes_per_step": 8 * args.groups,
    }
    if "simulated" in args.engine:
        found["simulated"] = simulated(args)
    if on_ray := [engine for engine in args.engine if engine != "simulated"]:
        with own_ray(object_store_mib=1024):
            for engine in on_ray:
                found[engine] = ENGINES[engine](args)
                write_figures(args.json, found)
    main_engine = next(engine for engine in ("vllm", "timed", "simulated") if engine in found)
    found = {"engine": main_engine} | {k: v for k, v in found[main_engine].items() if k not in ("modes", "learner_bound")} | found
    write_figures(args.json, found)
    staleness = found.get("staleness", {})
    return int(any(int(age) > args.eta for age in staleness))


if __name__ == "__main__":
    sys.exit(main())
