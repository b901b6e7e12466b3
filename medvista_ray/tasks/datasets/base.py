"""What every public set shares: finding its files, splitting, limiting, opening pictures, grading.

Invariant: `tasks` are a function of the files and the configuration alone; `open` needs no table to be read first, so a
generator opens a task's pictures without loading the set. A set says where its files are (`parts`) and yields `rows`.
Called through `tasks.source.SOURCES`, and by `check` and `commands`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from medvista_ray.config import BenchConfig
from medvista_ray.errors import ConfigError, DatasetError, did_you_mean
from medvista_ray.tasks.datasets.pictures import Pictures, decode
from medvista_ray.tasks.datasets.rows import BadRow, Row, is_usable, to_task
from medvista_ray.tasks.datasets.splits import Assignment, assign
from medvista_ray.types import MedImage, Split, Task


@dataclass(frozen=True)
class Part:
    """Files of a set."""

    pattern: str
    """Glob below the set's folder; "|" between alternatives."""
    gives: str
    marks: bool = False
    """Whether the set is recognised by it (it must be there)."""
    needed: bool = True
    """Whether the set is incomplete without it."""

    def found(self, folder: Path) -> list[Path]:
        """The files and folders that fit, sorted."""
        return sorted(path for pattern in self.pattern.split("|") for path in folder.glob(pattern))


def counts(train: int = 0, validation: int = 0, test: int = 0) -> Mapping[Split, int]:
    """Questions by split; a split that is not there has none."""
    return {Split.TRAIN: train, Split.VALIDATION: validation, Split.TEST: test}


class Dataset(ABC):
    """A public set in the folder `bench.path`, or in a folder directly below it."""

    name: ClassVar[str]
    title: ClassVar[str]
    home: ClassVar[str]
    """Where it is published."""
    licence: ClassVar[str]
    credit: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    published: ClassVar[Mapping[Split, int]]
    """Number of questions by published split, 0 where it is not known; what `check` compares with."""
    evaluation_only: ClassVar[bool] = False
    """Whether its authors mean it for evaluation alone: it is never trained on, and never split anew."""
    language: ClassVar[str] = "English"
    grader: ClassVar[str] = "words"
    """Name in `scoring.GRADERS`."""

    def __init__(self, config: BenchConfig) -> None:
        """Raises ConfigError without `bench.path`, DatasetError if the set is not there."""
        if config.path is None:
            raise ConfigError(f"bench.path = null: source {self.name!r} needs the folder of {self.title} ({self.home})")
        if self.evaluation_only and config.splits == "case":
            raise ConfigError(f"bench.splits = 'case': {self.title} is for evaluation alone and is not split anew")
        self.config = config
        self.root = self.locate(config.path)
        self.pictures = Pictures(self.root)
        self._tasks: dict[Split, list[Task]] = {}

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Whether the files in `folder` are this set's."""
        return all(part.found(folder) for part in cls.parts if part.marks)

    @classmethod
    def locate(cls, folder: Path) -> Path:
        """`folder`, or the first folder in it, that holds the set. Raises DatasetError naming what was looked for."""
        folder = folder.expanduser()
        if not folder.is_dir():
            raise DatasetError(f"{cls.title}: {str(folder)!r} is no folder")
        for candidate in (folder, *sorted(child for child in folder.iterdir() if child.is_dir())):
            if cls.fits(candidate):
                return candidate
        wanted = ", ".join(part.pattern for part in cls.parts if part.marks)
        raise DatasetError(f"{cls.title} is not in {str(folder)!r} nor in a folder of it; looked for: {wanted} ({cls.home})")

    @abstractmethod
    def rows(self) -> Iterator[Row | BadRow]:
        """Every published question, in published order."""

    @cached_property
    def records(self) -> list[Row | BadRow]:
        """All rows, read once; a second question of one id is bad, since answers go by id."""
        seen: set[str] = set()
        found: list[Row | BadRow] = []
        for row in self.rows():
            if isinstance(row, Row) and row.id in seen:
                row = BadRow(f"question {row.id}", "its id is used twice")
            elif isinstance(row, Row):
                seen.add(row.id)
            found.append(row)
        return found

    @cached_property
    def usable(self) -> list[Row]:
        """Rows with an answer and with all their pictures."""
        return [row for row in self.records if isinstance(row, Row) and is_usable(row)]

    @cached_property
    def assignment(self) -> Assignment:
        """Usable rows by the split they are used in."""
        return assign(self.usable, self.name, self.config.splits)

    def tasks(self, split: Split) -> Sequence[Task]:
        """The questions of a split in published order; a sample by `bench.seed` if there are more than bench.num_*.

        Raises DatasetError if the split's questions are there, but none with an answer and its pictures.
        """
        if split not in self._tasks:
            self._require_usable(split)
            rows = self.assignment.rows[split]
            self._tasks[split] = self._limit(split, [to_task(row, self.name, split, self.grader) for row in rows])
        return self._tasks[split]

    def open(self, task: Task) -> list[MedImage]:
        """The question's pictures, in the order in which the set lists them. Raises DatasetError, ImageError."""
        modality = str(task.recipe["modality"])
        return [decode(self.pictures.read(ref), modality, f"{task.subject}") for ref in task.recipe["pictures"]]

    def _require_usable(self, split: Split) -> None:
        rows = [row for row in self.records if isinstance(row, Row) and row.split in (split, None)]
        if rows and not any(is_usable(row) for row in rows):
            lost = next((f"picture {row.missing[0]!r} is not there" for row in rows if row.missing), "no answer is published")
            where = f"{self.title} in {str(self.root)!r}"
            raise DatasetError(f"{where}: none of {len(rows)} {split} questions can be asked; {lost}")

    def _limit(self, split: Split, tasks: list[Task]) -> list[Task]:
        kept = [task for task in tasks if task.family in self._families()] if self.config.families else tasks
        limits = {
            Split.TRAIN: self.config.num_train,
            Split.VALIDATION: self.config.num_validation,
            Split.TEST: self.config.num_test,
        }
        if len(kept) <= limits[split]:
            return kept
        order = np.random.default_rng(self.config.seed).permutation(len(kept))
        return [kept[i] for i in sorted(order[: limits[split]])]

    def _families(self) -> frozenset[str]:
        every = {to_task(row, self.name, split).family for split in Split for row in self.assignment.rows[split]}
        unknown = [name for name in self.config.families if name not in every]
        if unknown:
            raise ConfigError(
                f"bench.families: {unknown[0]!r} is not a family of {self.title}; {did_you_mean(unknown[0], every)}"
            )
        return frozenset(self.config.families)
