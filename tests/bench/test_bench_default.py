"""The default bench is pinned: a shipped policy and published figures belong to exactly these questions, in this order."""

from __future__ import annotations

import hashlib
import json

import pytest

from medvista_ray.config import BenchConfig
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.types import Split

pytestmark = pytest.mark.assets
NUM_TASKS = 400
PINNED = {
    Split.TRAIN: "472ddc55dfb0e4ed924109bd1486e4e3f62285fcd6e19349ebfc25dbaf33173c",
    Split.TEST: "9ce7d8b31df739844788c984f405326bed6d41b913d2d404f263f4f288a8608f",
}


@pytest.mark.parametrize("split", list(PINNED))
def test_the_first_tasks_of_the_default_bench_never_change(split: Split) -> None:
    tasks = MedVistaBench(BenchConfig()).tasks(split)[:NUM_TASKS]
    lines = "\n".join(json.dumps([task.id, task.question, task.answer]) for task in tasks)
    assert hashlib.sha256(lines.encode()).hexdigest() == PINNED[split]


def test_core_is_the_default() -> None:
    assert MedVistaBench(BenchConfig(families=("core",))).families == MedVistaBench(BenchConfig()).families
