"""Ray actors around the scripted generator and learner, with the methods of the real ones."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import ray

from medvista_ray.types import Episode, Group, Task
from tests.scripted_flow import make_episode

PICTURE = np.zeros((256, 256, 3), np.uint8)
"""Large enough that a group with it goes through the object store; one without is sent along with the answer."""


@ray.remote(max_restarts=-1, num_cpus=0, concurrency_groups={"control": 2}, max_concurrency=100)
class ScriptedGeneratorActor:
    """Sleeps instead of sampling; tags tokens with the version that it was told to load."""

    def __init__(self, name: str, group_s: float = 0.05, filtered_share: float = 0.0) -> None:
        self._name, self._group_s, self._filtered_share = name, group_s, filtered_share
        self._random = random.Random(name)
        self._version = -1

    async def ready(self) -> int:
        return self._version

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        assert self._version > 0, "work before weights"
        versions = [self._version]
        await asyncio.sleep(self._group_s * self._random.uniform(0.5, 1.5))
        versions.append(self._version)
        filtered = self._random.random() < self._filtered_share
        rewards = [1.0 if filtered else float(i % 2) for i in range(group_size)]
        episodes = [make_episode(task, versions, r) for r in rewards]
        for episode in episodes:
            episode.images = [PICTURE] if group_id % 2 else []
        return Group(id=group_id, episodes=episodes, version_admitted=-1)

    async def run_episodes(self, tasks: list[Task], with_tools: bool, temperature: float) -> list[Episode]:
        assert self._version > 0, "work before weights"
        await asyncio.sleep(self._group_s)
        return [make_episode(task, [self._version], float(with_tools)) for task in tasks]

    async def load_version(self, manifest: str) -> dict[str, float]:
        version = json.loads(manifest)["version"]
        assert version > self._version
        await asyncio.sleep(0.01)
        self._version = version
        return {"pause_s": 0.01, "update_s": 0.01}

    async def shutdown(self) -> None:
        self._version = -1

    @ray.method(concurrency_group="control")
    async def health(self) -> bool:
        return True

    @ray.method(concurrency_group="control")
    async def pid(self) -> int:
        return os.getpid()


@ray.remote(num_cpus=0, concurrency_groups={"control": 2})
class ScriptedLearnerActor:
    """Sleeps instead of training; keeps what it was given."""

    def __init__(self, train_s: float = 0.1) -> None:
        self._train_s = train_s
        self._trained: list[int] = []

    def ready(self) -> None: ...

    def train(self, *groups: Group) -> dict[str, float]:
        time.sleep(self._train_s)
        self._trained += [group.id for group in groups]
        return {"loss": 0.1}

    def publish(self, version: int) -> str:
        return json.dumps({"version": version})

    def save(self, path: str, extra: dict[str, Any]) -> None:
        Path(path).mkdir(parents=True)
        (Path(path) / "extra.json").write_text(json.dumps(extra))

    @ray.method(concurrency_group="control")
    def stats(self) -> dict[str, Any]:
        return {}

    @ray.method(concurrency_group="control")
    def trained(self) -> list[int]:
        return self._trained

    def close(self) -> None: ...


@ray.remote(num_cpus=1000)
class TooBigActor:
    """Fits on no machine."""

    def ready(self) -> None: ...
