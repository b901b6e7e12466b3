"""Scripted generators and a scripted learner for the loop, and an asyncio loop whose clock jumps instead of waiting.

Nothing here computes what the loop computes: a scripted generator tags every token with the version that it has
really been told to load, so that a staleness error of the loop shows.
"""

from __future__ import annotations

import asyncio
import json
import random
import selectors
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import numpy as np

from medvista_ray.errors import GeneratorDiedError, WeightUpdateError
from medvista_ray.flow.loop import LoopSettings, TrainingLoop
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Group, Split, Task


class Stuck(Exception):
    """Nothing is scheduled any more: a deadlock."""


class _JumpingSelector(selectors.SelectSelector):
    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events:
            if timeout is None:
                raise Stuck("every task waits for another one")
            self.now_s += timeout
        return events


class SimulatedLoop(asyncio.SelectorEventLoop):
    """Sleeps take no time; the clock shows simulated seconds."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s


def simulate(main: Coroutine[Any, Any, Any]) -> Any:
    """Run `main` in simulated time; raises Stuck on a deadlock."""
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        return runner.run(main)


def make_tasks(num: int) -> list[Task]:
    return [
        Task(
            id=f"task-{i}",
            source="scripted",
            family="scripted",
            split=Split.TRAIN,
            subject=f"subject-{i}",
            modality="CT",
            question="?",
            answer="yes",
            kind=AnswerKind.TEXT,
        )
        for i in range(num)
    ]


def make_episode(task: Task, versions: list[int], reward: float, status: EpisodeStatus = EpisodeStatus.ANSWERED) -> Episode:
    """Two prompt tokens, then one sampled token per version."""
    length = 2 + len(versions)
    return Episode(
        task=task,
        status=status,
        turns=[],
        answer="yes",
        token_ids=np.arange(length, dtype=np.int32),
        loss_mask=np.array([False, False] + [True] * len(versions)),
        logprobs=np.zeros(length, np.float32),
        versions=np.array([-1, -1, *versions], np.int32),
        images=[],
        reward=reward,
        correct=reward > 0.5,
    )


class ScriptedGenerator:
    """Samples a token of each episode now and then; dies, fails and filters at seeded random."""

    def __init__(
        self,
        name: str,
        seed: int = 0,
        *,
        ready_s: float = 1.0,
        latency_s: tuple[float, float] = (1.0, 5.0),
        slow_share: float = 0.1,
        load_s: tuple[float, float] = (0.05, 0.2),
        filtered_share: float = 0.0,
        failed_share: float = 0.0,
        death_share: float = 0.0,
        bad_load_share: float = 0.0,
    ) -> None:
        self.name = name
        self.version = 0
        self.loaded: list[int] = []
        """Versions of the present life, in the order they were loaded."""
        self.num_lives = 1
        self.started: list[int] = []
        self._random = random.Random(seed)
        self._latency_s, self._slow_share, self._load_s = latency_s, slow_share, load_s
        self._shares = (filtered_share, failed_share, death_share)
        self._ready_s = ready_s
        self._bad_load_share = bad_load_share

    async def ready(self) -> None:
        await asyncio.sleep(self._ready_s)

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        assert self.loaded, f"{self.name} got work before it had weights"
        self.started.append(group_id)
        life = self.num_lives
        filtered, failed, death = (self._random.random() < share for share in self._shares)
        duration_s = self._random.uniform(*self._latency_s) * (10 if self._random.random() < self._slow_share else 1)
        versions = []
        for _ in range(4):
            versions.append(self.version)
            await asyncio.sleep(duration_s / 4)
            if death and len(versions) == 2 and life == self.num_lives:
                self.die()
            if life != self.num_lives:
                raise GeneratorDiedError(f"{self.name} died")
        rewards = [0.0 if filtered else float(i % 2) for i in range(group_size)]
        episodes = [make_episode(task, versions, reward) for reward in rewards]
        if failed:
            episodes[0].status = EpisodeStatus.FAILED
        return Group(id=group_id, episodes=episodes, version_admitted=-1)

    async def load_version(self, manifest: str) -> dict[str, float]:
        life = self.num_lives
        version = json.loads(manifest)["version"]
        await asyncio.sleep(self._random.uniform(*self._load_s))
        if life != self.num_lives:
            raise GeneratorDiedError(f"{self.name} died")
        if self._random.random() < self._bad_load_share:
            raise WeightUpdateError("scripted")
        assert not self.loaded or version > self.loaded[-1], "versions must grow"
        self.version = version
        self.loaded.append(version)
        return {"pause_s": 0.02, "update_s": 0.01}

    async def restart(self) -> None:
        self.die()

    def die(self) -> None:
        self.num_lives += 1
        self.version = 0
        self.loaded = []


class ScriptedLearner:
    """Counts what it is given."""

    def __init__(self, train_s: float = 2.0) -> None:
        self.trained: Counter[int] = Counter()
        self.staleness: Counter[int] = Counter()
        self.busy: list[tuple[float, float]] = []
        self.saved: dict[str, dict[str, Any]] = {}
        self.version = -1
        self._train_s = train_s

    async def train(self, groups: list[Group]) -> dict[str, float]:
        began_s = asyncio.get_running_loop().time()
        await asyncio.sleep(self._train_s)
        self.trained.update(group.id for group in groups)
        for group in groups:
            for episode in group.episodes:
                self.staleness[self.version - int(episode.versions[episode.loss_mask].min())] += 1
        self.busy.append((began_s, asyncio.get_running_loop().time()))
        return {"loss": 0.5, "duration_s": self._train_s}

    async def publish(self, version: int) -> str:
        self.version = version
        return json.dumps({"version": version})

    async def save(self, path: str, extra: dict[str, Any]) -> None:
        self.saved[path] = json.loads(json.dumps(extra))


SETTINGS = LoopSettings(
    eta=1, batch_groups=4, group_size=2, max_running=8, max_retries=2, checkpoint_every=5, seed=0, checkpoint_root="run"
)


class World:
    """A loop and the scripted parts around it. Must be made inside a running event loop."""

    def __init__(
        self, settings: LoopSettings, generators: list[ScriptedGenerator], learner: ScriptedLearner, num_tasks: int = 50
    ) -> None:
        self.generators, self.learner = generators, learner
        self.loop = TrainingLoop(settings, make_tasks(num_tasks), generators, learner, clock=asyncio.get_running_loop().time)

    async def run(self, num_steps: int) -> dict[str, Any]:
        return await self.loop.run(num_steps)
