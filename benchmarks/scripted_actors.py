"""Actors that cost next to nothing in the place of engines and learner: what is measured is what stands between them.

Episodes have the size of the main job's (400 tokens, 50 of them sampled, two turns, the question's picture shared by
the group and a crop of one's own in every third episode); tokens carry the versions that were really loaded. Called by
`benchmarks.scale`.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Group, Split, Task, Turn

NUM_TOKENS, NUM_SAMPLED, SIDE = 400, 50, 112


def make_tasks(num: int) -> list[Task]:
    """Questions that nobody reads."""
    return [
        Task(
            id=f"task-{i}", source="scripted", family="scripted", split=Split.TRAIN, subject=f"subject-{i % 40}",
            modality="CT", question="How wide is box [516, 324, 638, 381], in mm?", answer="15", kind=AnswerKind.NUMBER,
        )
        for i in range(num)
    ]  # fmt: skip


@dataclass(frozen=True)
class Script:
    """What the engines pretend."""

    group_s: float
    """Mean duration of a group; single ones take half to one and a half times as long."""
    filtered_share: float = 0.0


@ray.remote(num_cpus=0, max_concurrency=100_000)
class GeneratorHost:
    """One process in which any number of logical generators live: each is one more name for this actor."""

    def __init__(self, script: Script, seed: int) -> None:
        self._script = script
        self._random = random.Random(seed)
        self._pictures = [np.random.default_rng([seed, i]).integers(0, 256, (SIDE, SIDE, 3), np.uint8) for i in range(64)]
        self._version = -1
        self._num_groups, self._seconds = 0, 0.0

    async def ready(self) -> int:
        """The version that serves."""
        return self._version

    async def load_version(self, manifest: str) -> dict[str, float]:
        """As if loaded; the first of the logical generators changes the version of all."""
        self._version = max(self._version, json.loads(manifest)["version"])
        return {"pause_s": 0.0, "update_s": 0.0}

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        """Wait, then return episodes of realistic size."""
        start = time.perf_counter()
        first = self._version
        await asyncio.sleep(self._script.group_s * self._random.uniform(0.5, 1.5))
        equal = self._random.random() < self._script.filtered_share
        picture = self._random.choice(self._pictures)
        rewards = [1.0 if equal else float(i % 2) for i in range(group_size)]
        episodes = [make_episode(task, self._seen(picture, i), first, self._version, reward) for i, reward in enumerate(rewards)]
        seconds = time.perf_counter() - start
        self._num_groups += 1
        self._seconds += seconds
        return Group(id=group_id, episodes=episodes, version_admitted=-1, seconds=seconds)

    async def told(self) -> tuple[int, float]:
        """Groups so far, and the seconds that they took in here."""
        return self._num_groups, self._seconds

    def _seen(self, picture: Any, number: int) -> list[Any]:
        return [picture] if number % 3 else [picture, self._random.choice(self._pictures)]


def make_episode(task: Task, images: list[Any], first: int, last: int, reward: float) -> Episode:
    """Half of its tokens sampled by version `first`, half by `last`."""
    mask = np.zeros(NUM_TOKENS, bool)
    mask[-NUM_SAMPLED:] = True
    versions = np.where(mask, first, -1).astype(np.int32)
    versions[-NUM_SAMPLED // 2 :] = last
    arguments = {"bbox": [516, 324, 638, 381]}
    call = json.dumps({"name": "measure", "arguments": arguments})
    measured = "width 15 mm, height 7.0 mm, area 1.0 cm2, mean -134 HU"
    return Episode(
        task=task,
        status=EpisodeStatus.ANSWERED,
        turns=[
            Turn(
                text=f"<think>Now I measure.</think><tool_call>{call}</tool_call>",
                tool="measure",
                arguments=arguments,
                observation=measured,
            ),
            Turn(text="<think>Now I know.</think><answer>15</answer>"),
        ],
        answer="15",
        token_ids=np.arange(NUM_TOKENS, dtype=np.int32),
        loss_mask=mask,
        logprobs=np.zeros(NUM_TOKENS, np.float32),
        versions=versions,
        images=images,
        reward=reward,
        reward_parts={"format": 0.2, "accuracy": reward, "tool_bonus": 0.0},
        correct=reward > 0.5,
        duration_s=1.0,
    )


@ray.remote(num_cpus=0)
class CountingLearner:
    """Looks at each group once and forgets it."""

    def __init__(self) -> None:
        self._seen: set[int] = set()

    def ready(self) -> None:
        """Answers when the process is there."""

    def train(self, *groups: Group) -> dict[str, float]:
        """Raises if a group comes twice."""
        ids = {group.id for group in groups}
        assert len(ids) == len(groups), "a group is in the batch twice"
        assert not ids & self._seen, "a group was trained twice"
        self._seen |= ids
        return {"loss": 0.0}

    def publish(self, version: int) -> str:
        """Nothing but the number."""
        return json.dumps({"version": version})

    def save(self, path: str, extra: dict[str, Any]) -> None:
        """A benchmark's run is never resumed, so nothing is kept."""

    def num_trained(self) -> int:
        """Different groups so far."""
        return len(self._seen)
