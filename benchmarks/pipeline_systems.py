"""The two systems that `benchmarks.pipeline` runs: the real one, and one in which engine and learner only take time.

Both have learner, generators and the real coordinator as actors; a system outlives its runs, each of which begins with the
same weights under a new version. Called by `benchmarks.pipeline`.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray

from benchmarks.latency import LatentTools, LogNormal
from benchmarks.pipeline_simulated import TwoTurns
from benchmarks.scripted_actors import CountingLearner, make_episode, make_tasks
from medvista_ray.config import TrainConfig
from medvista_ray.types import Episode, Group, Split, Task

READY_S = 600.0


class System(Protocol):
    """What a run needs."""

    learner: Any
    generators: dict[str, Any]
    tasks: Sequence[Task]

    def rewind(self) -> None:
        """The learner has its first weights again."""
        ...

    def close(self) -> None:
        """End the actors."""
        ...


class RealSystem:
    """vLLM and the real learner on the shipped tiny base, after a cold start if asked for; tools behind a latency."""

    def __init__(self, config: TrainConfig, num_trajectories: int, num_generators: int = 1) -> None:
        from actors.supervisor import Supervisor
        from medvista_ray.models.policy import resolve_policy
        from medvista_ray.tasks.source import load_source

        self._config = config
        folder = resolve_policy(config.policy)
        source = load_source(config.bench)
        self.tasks = source.tasks(Split.TRAIN)
        self._supervisor = Supervisor(config)
        self.learner: Any = self._supervisor.start_learner(str(folder), f"pipeline-{random.getrandbits(32):08x}")
        names = config.tools.names
        self.generators = self._supervisor.start_generators(str(folder), lambda: latent_tools(names))
        episodes = asyncio.run(self._expert(source, folder, num_trajectories)) if num_trajectories else []
        self._supervisor.wait_ready(READY_S)
        if episodes:
            ray.get(self.learner.sft.remote(episodes), timeout=READY_S)
        self._start = tempfile.mkdtemp(prefix="mvpipeline") + "/start"
        ray.get(self.learner.save.remote(self._start, {}), timeout=READY_S)

    def rewind(self) -> None:
        """From the checkpoint that was written at the start; optimiser and schedule too."""
        ray.get(self.learner.load.remote(self._start), timeout=READY_S)

    def close(self) -> None:
        """Engines and learner; returns when their names are free for the next system."""
        self._supervisor.shutdown()
        until_s = time.monotonic() + READY_S
        while ray.util.list_named_actors() and time.monotonic() < until_s:
            time.sleep(0.2)

    async def _expert(self, source: Any, folder: Path, num: int) -> Any:
        from medvista_ray.models.policy import load_inputs
        from medvista_ray.tools.client import LocalToolClient
        from trainers.cold_start import collect_trajectories

        client = LocalToolClient(self._config.tools.names, timeout_s=120.0)
        return (await collect_trajectories(self.tasks[:num], source, client, load_inputs(folder), self._config)).kept


class TimedSystem:
    """No model: tokens come at an engine's pace, tools answer after the same latency, a learner's step takes its time."""

    def __init__(self, config: TrainConfig, train_s: float, filtered_share: float) -> None:
        generator, learner = map(_any, (TimedGenerator, TimedLearner))
        self.tasks = make_tasks(1000)
        self.learner: Any = learner.remote(train_s)
        self.generators = {f"generator-{i}": generator.remote(i, filtered_share) for i in range(config.generator.num_generators)}
        ray.get([actor.ready.remote() for actor in (self.learner, *self.generators.values())], timeout=READY_S)

    def rewind(self) -> None:
        """There are no weights."""
        ray.get(self.learner.forget.remote(), timeout=READY_S)

    def close(self) -> None:
        """End the actors."""
        for actor in (self.learner, *self.generators.values()):
            ray.kill(actor)


def latent_tools(names: Sequence[str]) -> LatentTools:
    """The shipped tools in the generator's process, behind the latency."""
    from medvista_ray.tools.client import LocalToolClient

    return LatentTools(LocalToolClient(names, timeout_s=120.0), LogNormal(), seed=0)


@ray.remote(num_cpus=0, max_concurrency=10_000)
class TimedGenerator(TwoTurns):
    """As a generator actor."""

    async def ready(self) -> int:
        """The version that serves."""
        return self._version

    async def stats(self) -> dict[str, Any]:
        """Seconds with a sequence in the engine."""
        return {"busy_s": self.engine.busy_s}

    def episode(self, task: Task, first: int, second: int, reward: float) -> Episode:
        """With a picture, as it crosses Ray."""
        return make_episode(task, [np.zeros((112, 112, 3), np.uint8)], first, second, reward)


@ray.remote(num_cpus=0)
class TimedLearner(CountingLearner.__ray_metadata__.modified_class):  # type: ignore[misc]
    """Takes its time for every step."""

    def __init__(self, train_s: float) -> None:
        super().__init__()
        self._train_s = train_s

    def train(self, *groups: Group) -> dict[str, float]:
        """Wait; no group may come twice."""
        time.sleep(self._train_s)
        tokens = sum(episode.num_sampled for group in groups for episode in group.episodes)
        return super().train(*groups) | {"num_trained_tokens": float(tokens)}

    def forget(self) -> None:
        """A new run numbers its groups anew."""
        self._seen = set()


def _any(value: Any) -> Any:
    """Ray's annotations do not know `remote` of these."""
    return value
