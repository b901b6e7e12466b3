"""The contract of a task source: verifiable questions by split, and the pictures behind them.

Invariant: `tasks` and `open` are deterministic; no subject is in two splits. Called by the coordinator (which hands out
tasks), by generators (which open the pictures where they run), by the expert and the evaluator.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from medvista_ray.config import BenchConfig
from medvista_ray.registry import Registry
from medvista_ray.tasks.datasets import DATASETS
from medvista_ray.types import MedImage, Split, Task

SOURCES = Registry("source", {"medvista_bench": "medvista_ray.tasks.bench.source:MedVistaBench", **DATASETS})


class TaskSource(Protocol):
    """Where tasks come from."""

    def tasks(self, split: Split) -> Sequence[Task]:
        """All tasks of a split, in a fixed order."""
        ...

    def open(self, task: Task) -> list[MedImage]:
        """The question's pictures, `task.num_images` of them."""
        ...


def load_source(config: BenchConfig) -> TaskSource:
    """The source that `config` names, built with it. Raises UnknownNameError if there is none."""
    return SOURCES.load(config.source)(config)
