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
    Split.TRAIN: "0271e15d8132eaafe3786b0f0907836ecb0f064ebadb30e9fc9f0f32946db528",
    Split.TEST: "cd1cbd3cdab5e5968ab306bf3f1157b0cefb92fecdd243395b5d604a67044709",
}


@pytest.mark.parametrize("split", list(PINNED))
def test_the_first_tasks_of_the_default_bench_never_change(split: Split) -> None:
    tasks = MedVistaBench(BenchConfig()).tasks(split)[:NUM_TASKS]
    lines = "\n".join(json.dumps([task.id, task.question, task.answer]) for task in tasks)
    assert hashlib.sha256(lines.encode()).hexdigest() == PINNED[split]


def test_core_is_the_default() -> None:
    assert MedVistaBench(BenchConfig(families=("core",))).families == MedVistaBench(BenchConfig()).families
