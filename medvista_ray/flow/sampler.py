"""The order in which training tasks are asked.

`TaskSampler` asks every task once per epoch. `FamilySampler` draws families in proportion to how often their groups could
be trained lately: a group whose episodes all score the same costs as much as any and teaches nothing (dynamic sampling of
DAPO, arXiv 2503.14476, throws such groups away; here fewer of them are made).
Invariant: what comes next depends on the seed, the task ids and the reported outcomes only, so that a resumed run continues
exactly. Called by `flow.loop`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from medvista_ray.config import Sampling
from medvista_ray.errors import ConfigError, RunFolderError
from medvista_ray.types import Task

FLOOR = 0.1
"""Added to every family's yield: one without any signal is still asked now and then, and comes back when that changes."""
MEMORY = 0.97
"""Weight that an outcome keeps with each newer one of its family: the last thirty count."""


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

    def report(self, task: Task, could_be_trained: bool) -> None:
        """The order does not depend on outcomes."""

    def to_json(self) -> dict[str, Any]:
        """Where the sequence stands."""
        return {"epoch": self._epoch, "position": self._position, "fingerprint": self._fingerprint()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `to_json`. Raises RunFolderError if the tasks or the seed are others."""
        if state.get("fingerprint") != self._fingerprint():
            raise RunFolderError("the checkpoint was made with other training tasks, another seed or another flow.sampling")
        self._epoch, self._position = state["epoch"], state["position"]
        self._order = self._shuffled()

    def _shuffled(self) -> list[int]:
        return np.random.default_rng([self._seed, self._epoch]).permutation(len(self._tasks)).tolist()

    def _fingerprint(self) -> str:
        ids = "\n".join(task.id for task in self._tasks)
        return hashlib.sha256(f"{self._seed}\n{ids}".encode()).hexdigest()[:16]


class FamilySampler:
    """An endless, seeded sequence of tasks in which a family's share follows its yield: the fraction of its latest groups
    that could be trained. Within a family every task comes once per epoch."""

    def __init__(self, tasks: Sequence[Task], seed: int) -> None:
        if not tasks:
            raise ConfigError("bench: the training split has no tasks")
        by_family: dict[str, list[Task]] = {}
        for task in tasks:
            by_family.setdefault(task.family, []).append(task)
        self._samplers = {family: TaskSampler(some, seed) for family, some in sorted(by_family.items())}
        self._shares = np.array([len(by_family[family]) for family in self._samplers], np.float64)
        self._outcomes = {family: [1.0, 2.0] for family in self._samplers}
        """By family: groups that could be trained, and all; older ones count less. It begins as if one of two could be."""
        self._seed = seed
        self._num_drawn = 0

    def yields(self) -> dict[str, float]:
        """By family: the fraction of its latest groups that could be trained."""
        return {family: trained / total for family, (trained, total) in self._outcomes.items()}

    def next(self) -> Task:
        """The next task."""
        weights = self._shares * (FLOOR + np.array(list(self.yields().values())))
        rng = np.random.default_rng([self._seed, self._num_drawn])
        self._num_drawn += 1
        return list(self._samplers.values())[rng.choice(len(weights), p=weights / weights.sum())].next()

    def report(self, task: Task, could_be_trained: bool) -> None:
        """A group of `task` came back, with or without a difference in reward."""
        trained, total = self._outcomes[task.family]
        self._outcomes[task.family] = [trained * MEMORY + could_be_trained, total * MEMORY + 1.0]

    def to_json(self) -> dict[str, Any]:
        """Where the sequence stands."""
        families = {family: sampler.to_json() for family, sampler in self._samplers.items()}
        return {"num_drawn": self._num_drawn, "outcomes": self._outcomes, "families": families}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `to_json`. Raises RunFolderError if the tasks or the seed are others."""
        families: dict[str, dict[str, Any]] = state.get("families", {})
        if families.keys() != self._samplers.keys():
            raise RunFolderError("the checkpoint was made with other task families or another flow.sampling")
        for family, sampler in self._samplers.items():
            sampler.restore(families[family])
        self._num_drawn, self._outcomes = state["num_drawn"], dict(state["outcomes"])


def make_sampler(kind: Sampling, tasks: Sequence[Task], seed: int) -> TaskSampler | FamilySampler:
    """The sampler that `flow.sampling` names. Raises ConfigError if there is no task."""
    return FamilySampler(tasks, seed) if kind == "by_yield" else TaskSampler(tasks, seed)
