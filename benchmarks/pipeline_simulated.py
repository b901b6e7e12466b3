"""The real loop over an engine and a learner that only take time, in simulated time: exact, and the same on any machine.

Owns the model of the engine, which the `timed` system shares: continuous batching, so many tokens per second for one
sequence and so many for all together. Called by `benchmarks.pipeline`.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

from benchmarks.latency import LogNormal
from medvista_ray.config import TrainConfig
from medvista_ray.flow.loop import LoopSettings, TrainingLoop
from medvista_ray.flow.recorder import MetricsRecorder
from medvista_ray.types import Episode, Group, Task
from tests.scripted_flow import make_episode, make_tasks, simulate

TURN_TOKENS = 25.0
"""Sampled tokens of a turn; an episode has two turns with a tool call in between."""
Marks = list[tuple[dict[str, float], float, float]]


class SharedEngine:
    """Serves all sequences in flight alike."""

    ONE_PER_S, ALL_PER_S, NOTHING = 235.0, 1000.0, 1e-3

    def __init__(self) -> None:
        self.busy_s = 0.0
        """Time with a sequence in flight."""
        self._left: dict[asyncio.Event, float] = {}
        self._at_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    async def sample(self, num_tokens: float) -> None:
        """Returns when they are sampled."""
        self._advance()
        done = asyncio.Event()
        self._left[done] = num_tokens
        self._plan()
        await done.wait()

    def _rate(self) -> float:
        return min(self.ONE_PER_S, self.ALL_PER_S / len(self._left))

    def _advance(self) -> None:
        now_s = asyncio.get_running_loop().time()
        passed_s, self._at_s = now_s - self._at_s, now_s
        if self._left:
            self.busy_s += passed_s
            sampled = passed_s * self._rate()
            self._left = {done: left - sampled for done, left in self._left.items()}

    def _plan(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._left:
            delay_s = max(0.0, min(self._left.values())) / self._rate()
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._finish)

    def _finish(self) -> None:
        self._advance()
        for done in [done for done, left in self._left.items() if left <= self.NOTHING]:
            del self._left[done]
            done.set()
        self._plan()


class TwoTurns:
    """Episodes of two turns with a tool call in between, on a SharedEngine; tags tokens with the versions that were loaded."""

    def __init__(self, seed: int, filtered_share: float) -> None:
        self.engine = SharedEngine()
        self._random = random.Random(seed)
        self._filtered_share = filtered_share
        self._latency = LogNormal()
        self._version = -1

    async def load_version(self, manifest: str) -> dict[str, float]:
        """As quick as the real one."""
        await asyncio.sleep(0.04)
        self._version = json.loads(manifest)["version"]
        return {"pause_s": 0.04, "update_s": 0.02}

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        """The group's episodes at the same time."""
        equal = self._random.random() < self._filtered_share
        rewards = [1.0 if equal else float(i % 2) for i in range(group_size)]
        episodes = await asyncio.gather(*(self._play(task, reward) for reward in rewards))
        return Group(id=group_id, episodes=list(episodes), version_admitted=-1)

    async def _play(self, task: Task, reward: float) -> Episode:
        first = self._version
        await self.engine.sample(TURN_TOKENS)
        await asyncio.sleep(self._latency.draw(self._random))
        second = self._version
        await self.engine.sample(TURN_TOKENS)
        return self.episode(task, first, second, reward)

    def episode(self, task: Task, first: int, second: int, reward: float) -> Episode:
        """Whose turns were begun at those versions."""
        half = int(TURN_TOKENS)
        return make_episode(task, [first] * half + [second] * half, reward)


class SimulatedGenerator(TwoTurns):
    """As the loop sees a generator (`flow.protocols`); one that never breaks."""

    def __init__(self, name: str, seed: int, filtered_share: float) -> None:
        super().__init__(seed, filtered_share)
        self.name = name

    async def ready(self) -> None:
        """At once: there is nothing to start."""

    async def restart(self) -> None:
        """Never asked for: no call of it fails."""


class SimulatedLearner:
    """Takes its time for every step."""

    def __init__(self, train_s: float) -> None:
        self._train_s = train_s

    async def train(self, groups: list[Group]) -> dict[str, float]:
        """One step."""
        await asyncio.sleep(self._train_s)
        tokens = sum(episode.num_sampled for group in groups for episode in group.episodes)
        return {"loss": 0.0, "num_trained_tokens": float(tokens)}

    async def publish(self, version: int) -> str:
        """As quick as the real one."""
        await asyncio.sleep(0.02)
        return json.dumps({"version": version})

    async def save(self, path: str, extra: dict[str, Any]) -> None:
        """A simulated run is never resumed, so nothing is kept."""


def simulate_run(config: TrainConfig, num_steps: int, train_s: float, filtered_share: float) -> tuple[Marks, dict[str, Any]]:
    """Per step its record, the time and the engine's busy seconds; and the loop's final status."""

    async def main() -> tuple[Marks, dict[str, Any]]:
        clock = asyncio.get_running_loop().time
        generator = SimulatedGenerator("generator-0", config.seed, filtered_share)
        marks: Marks = []

        class Recorder(MetricsRecorder):
            def append(self, record: dict[str, float]) -> None:
                super().append(record)
                marks.append((record, clock(), generator.engine.busy_s))

        settings = LoopSettings.of(config, Path("unused"))
        learner = SimulatedLearner(train_s)
        loop = TrainingLoop(settings, make_tasks(1000), [generator], learner, Recorder(), clock=clock)
        status = await loop.run(num_steps)
        return marks, status

    return simulate(main())
