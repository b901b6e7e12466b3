"""What the coordinator costs per episode, from 16 to 1,024 generators with 32 episodes each, and whether its memory grows:

    python benchmarks/scale.py --json scale.json [--num-generators 16 64 256 1024] [--num-episodes 20000] [--memory-at 64]

Real: the coordinator actor with its loop, admission, ledger, inbox, fleet, trajectory log and metrics, Ray's calls and the
object store, groups by value. Scripted: engines, environment, tools and learner (`benchmarks.scripted_actors`); a few
processes hold the logical generators, each of which is a generator of its own to the coordinator. Starts a Ray of its own
and ends it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import Process, machine, own_ray, write_figures
from medvista_ray.config import TrainConfig

GROUP_SIZE, GROUPS_EACH = 8, 4
"""4 groups of 8: 32 episodes in flight per generator."""
ETA = 3
"""Admission then keeps all generators busy with batches of a quarter of what is in flight."""
NUM_HOSTS = 2
SAMPLE_S = 0.5
FLAT_MIB = 25.0
"""Per 50,000 episodes: half a KiB an episode; the inbox's ups and downs make a trend of several MiB by themselves."""
TIMEOUT_S = 3600.0


class System:
    """A real coordinator over scripted engines and a scripted learner, made for one run."""

    def __init__(self, num_generators: int, num_episodes: int, rate: float, run_dir: str) -> None:
        """`rate`: episodes per second that the engines produce together."""
        import ray

        from actors.coordinator import CoordinatorActor
        from benchmarks.scripted_actors import CountingLearner, GeneratorHost, Script, make_tasks

        self.num_groups = num_generators * GROUPS_EACH
        batch = max(1, self.num_groups // (ETA + 1))
        self.num_steps = max(3, -(-num_episodes // (batch * GROUP_SIZE)))
        config = TrainConfig.model_validate(
            {
                "grpo": {"groups_per_step": batch, "group_size": GROUP_SIZE},
                "flow": {"eta": ETA, "max_running_groups": self.num_groups, "checkpoint_every": 10**6},
            }
        )
        script: Any = Script(group_s=self.num_groups * GROUP_SIZE / rate)
        host, coordinator, learner = map(_any, (GeneratorHost, CoordinatorActor, CountingLearner))
        self.hosts = [host.remote(script, seed) for seed in range(NUM_HOSTS)]
        self.learner = learner.remote()
        generators = {f"generator-{i}": self.hosts[i % NUM_HOSTS] for i in range(num_generators)}
        self.coordinator = coordinator.remote(config, make_tasks(4000), generators, self.learner, run_dir)
        self.process = Process.of_actor(self.coordinator)
        ray.get(self.learner.ready.remote(), timeout=60)

    def close(self) -> None:
        """End the actors."""
        import ray

        for actor in [self.coordinator, self.learner, *self.hosts]:
            ray.kill(actor)


@contextmanager
def system(num_generators: int, num_episodes: int, rate: float) -> Iterator[System]:
    """The system, with a folder for its log."""
    folder = tempfile.mkdtemp(prefix="mvscale")
    made = System(num_generators, num_episodes, rate, folder)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


def measure(num_generators: int, num_episodes: int, rate: float) -> dict[str, Any]:
    """One run: CPU per finished episode, latency, memory over the episodes."""
    import ray

    with system(num_generators, num_episodes, rate) as made:
        cpu_s, start = made.process.cpu_s(), time.perf_counter()
        run = made.coordinator.run.remote(made.num_steps)
        samples: list[tuple[float, float, float, float]] = []
        while not ray.wait([run], timeout=SAMPLE_S)[0]:
            samples.append(_sample(made))
        summary = ray.get(run, timeout=TIMEOUT_S)
        cpu_s, wall_s = made.process.cpu_s() - cpu_s, time.perf_counter() - start
        told = [ray.get(host.told.remote()) for host in made.hosts]
        trained = ray.get(made.learner.num_trained.remote())
    counts = summary["counts"]
    assert trained == counts["num_trained"] == counts["num_submitted"], f"books do not balance: {counts}"
    episodes = trained * GROUP_SIZE
    finished, status_s, running, memory = np.array(samples).T
    return {
        "num_generators": num_generators,
        "num_episodes": episodes,
        "num_steps": summary["step"],
        "staleness_max": max(summary["staleness_histogram"]),
        "coordinator_ms_per_episode": round(1e3 * cpu_s / episodes, 4),
        "coordinator_cpu_frac": round(cpu_s / wall_s, 3),
        "episodes_per_s": round(episodes / wall_s, 1),
        "group_s_in_generator": round(sum(s for _, s in told) / sum(n for n, _ in told), 2),
        "status_p50_ms": round(1e3 * float(np.percentile(status_s, 50)), 1),
        "status_p95_ms": round(1e3 * float(np.percentile(status_s, 95)), 1),
        "running_p50": float(np.median(running)),
        "memory": _growth(finished, memory),
    }


def _sample(made: System) -> tuple[float, float, float, float]:
    """Episodes finished, seconds that a status took, groups in the generators, the coordinator's MiB."""
    import ray

    start = time.perf_counter()
    counts = ray.get(made.coordinator.status.remote(), timeout=120)["counts"]
    took_s = time.perf_counter() - start
    done = counts["num_trained"] + counts["num_ready"] + counts["num_filtered"]
    return done * GROUP_SIZE, took_s, counts["num_running"], made.process.private_mib()


def _growth(finished: Any, memory: Any) -> dict[str, float]:
    """Of the coordinator's private memory: medians of three spans of the run, and the trend over its last two thirds."""
    last = finished.max()
    spans = [memory[(finished >= low * last) & (finished <= high * last)] for low, high in ((0.3, 0.4), (0.6, 0.7), (0.9, 1.0))]
    late = finished > last / 3
    slope = np.polyfit(finished[late], memory[late], 1)[0] if len(set(finished[late].tolist())) > 2 else 0.0
    names = ("mib_at_35_percent", "mib_at_65_percent", "mib_at_95_percent")
    figures = {name: round(float(np.median(span)), 1) for name, span in zip(names, spans, strict=True) if len(span)}
    return figures | {"peak_mib": round(float(memory.max()), 1), "growth_mib_per_50000": round(float(slope) * 50_000, 2)}


def _any(value: Any) -> Any:
    """Ray's annotations do not know `remote` of these."""
    return value


def parse() -> Namespace:
    """The command line."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True, help="file of the figures")
    parser.add_argument("--num-generators", type=int, nargs="+", default=[16, 64, 256, 1024], help="logical generators")
    parser.add_argument("--num-episodes", type=int, default=20_000, help="episodes of each run, at least (default: 20000)")
    parser.add_argument("--memory-at", type=int, default=64, help="generators of the long run; 0: none (default: 64)")
    parser.add_argument("--memory-episodes", type=int, default=50_000, help="episodes of the long run (default: 50000)")
    parser.add_argument("--num-runs", type=int, default=3, help="runs of the last of --num-generators (default: 3)")
    parser.add_argument("--rate", type=float, default=600.0, help="episodes/s that the engines produce (default: 600)")
    return parser.parse_args()


def main() -> int:
    """Measure; 1 if the median of the last size costs more than 1 ms of CPU per episode or memory grows."""
    args = parse()
    figures = machine() | {"episodes_in_flight_each": GROUP_SIZE * GROUPS_EACH, "runs": []}
    with own_ray(object_store_mib=3072):
        last = args.num_generators[-1]
        for num in [*args.num_generators, *[last] * (args.num_runs - 1)]:
            figures["runs"].append(measure(num, args.num_episodes, args.rate))
            print(json.dumps(figures["runs"][-1]), flush=True)
        if args.memory_at:
            figures["memory"] = measure(args.memory_at, args.memory_episodes, args.rate)
    costs = [run["coordinator_ms_per_episode"] for run in figures["runs"] if run["num_generators"] == last]
    figures["coordinator_ms_per_episode"] = round(float(np.median(costs)), 4)
    write_figures(args.json, figures)
    grows = args.memory_at and figures["memory"]["memory"]["growth_mib_per_50000"] > FLAT_MIB
    return int(figures["coordinator_ms_per_episode"] > 1.0 or bool(grows))


if __name__ == "__main__":
    sys.exit(main())
