"""MedVista-Bench as a task source: drafts from the families become tasks with an id, split by subject.

Invariant: a task is a function of (seed, split, family, index) alone. Called through `tasks.source.SOURCES`.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import fields

import numpy as np

from medvista_ray.config import BenchConfig
from medvista_ray.errors import ConfigError, InvariantError, did_you_mean
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.families import FAMILIES, SETS, SHARES
from medvista_ray.tasks.bench.pictures import recipes_of, render_all
from medvista_ray.types import MedImage, Split, Task

MAX_DRAWS = 400
"""Draws after which a family that gives no valid question counts as broken."""


class MedVistaBench:
    """Verifiable questions on real pictures."""

    name = "medvista_bench"

    def __init__(self, config: BenchConfig) -> None:
        unknown = [name for name in config.families if name not in (*SHARES, *SETS)]
        if unknown:
            known = (*SETS, *SHARES)
            raise ConfigError(f"bench.families: {unknown[0]!r} is not a family; {did_you_mean(unknown[0], known)}")
        named = (SETS.get(name, (name,)) for name in config.families or ("core",))
        self.config = config
        self.families = tuple(dict.fromkeys(name for names in named for name in names))
        self._made: dict[Split, list[Task]] = {}

    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split: the families' shares, interleaved."""
        if split not in self._made:
            numbers = {
                Split.TRAIN: self.config.num_train,
                Split.VALIDATION: self.config.num_validation,
                Split.TEST: self.config.num_test,
            }
            self._made[split] = self._make(split, numbers[split])
        return self._made[split]

    def open(self, task: Task) -> list[MedImage]:
        """The pictures of a task, one for most families."""
        return render_all(task.recipe)

    def _make(self, split: Split, num_tasks: int) -> list[Task]:
        total = sum(SHARES[name] for name in self.families)
        tasks: list[Task] = []
        for name in self.families:
            share = round(num_tasks * SHARES[name] / total)
            tasks += [task for index in range(share) if (task := self.make(name, split, index)) is not None]
        order = np.random.default_rng(self.config.seed).permutation(len(tasks))
        return [tasks[i] for i in order]

    def make(self, family: str, split: Split, index: int) -> Task | None:
        """Task `index` of a family; None where a split has no subject for the family.

        Raises InvariantError if a family that has subjects yields nothing.
        """
        rng = np.random.default_rng([self.config.seed, *(zlib.crc32(s.encode()) for s in (split, family)), index])
        make = FAMILIES.load(family)
        for _ in range(MAX_DRAWS):
            draft: Draft | None = make(rng, split, index)
            if draft is not None:
                return _task(draft, family, split, f"{family}/{split}/{self.config.seed}/{index}")
        if split == Split.VALIDATION:
            return None
        raise InvariantError(f"family {family!r} gave no question for {split} task {index} in {MAX_DRAWS} draws")


def _task(draft: Draft, family: str, split: Split, identifier: str) -> Task:
    num_images = len(recipes_of(draft.recipe))
    made = {part.name: getattr(draft, part.name) for part in fields(draft)}  # not asdict: it copies the recipe, deeply
    return Task(id=identifier, source=MedVistaBench.name, family=family, split=split, num_images=num_images, **made)
