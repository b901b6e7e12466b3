"""The order in which training tasks are asked: every task once per epoch, in an order fixed by the seed.

Invariant: the order depends on the seed and the task ids only, so that a resumed run continues it exactly.
Called by `flow.loop`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvista_ray.errors import ConfigError, RunFolderError
from medvista_ray.types import Task


class TaskSampler:
    """An endless, seeded sequence of tasks."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise ConfigError("bench: the training split has no tasks")
        self._tasks = tuple(tasks)
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._order = self._shuffled()

    @property
    def epoch(self) -> int:
        """Completed passes over the tasks."""
        return self._epoch

    def next(self) -> Task:
        """The next task; after the last one the next epoch's order begins."""
        if self._position == len(self._tasks):
            self._epoch += 1
            self._position = 0
            self._order = self._shuffled()
        task = self._tasks[self._order[self._position]]
        self._position += 1
        return task

    def to_json(self) -> dict[str, Any]:
        """Where the sequence stands."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `to_json`. Raises RunFolderError if the tasks or the seed are others."""
        if state["fingerprint"] != self._fingerprint():
            raise RunFolderError("the checkpoint was made with other training tasks or another seed")
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._tasks)).tolist()

    def _fingerprint(self) -> str:
        ids = "\n".join(task.id for task in self._tasks)
        return hashlib.sha256(f"{self._seed}\n{ids}".encode()).hexdigest()[:16]
