"""No shortcut answers the bench: neither the commonest answer nor the question's words and numbers alone.

Both baselines are fitted on training tasks and scored on test subjects by the real grader; each must stay within five
points (eight in the wide set: three standard errors) of the family's stated chance. The thumbnail probe, which must open
every picture, runs in the audit.
"""

from __future__ import annotations

import numpy as np
import pytest

from medvista_ray.config import BenchConfig
from medvista_ray.tasks.bench import shortcuts
from medvista_ray.tasks.bench.families import SETS, SHARES
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tasks.graders import grade
from medvista_ray.tools.parse.measure import measure_box
from medvista_ray.types import Split, Task

pytestmark = pytest.mark.assets
NUM_TRAIN, NUM_TEST = 240, 360
MARGINS = {name: 0.05 if name in SETS["core"] else 0.08 for name in SHARES}


@pytest.fixture(scope="module")
def tasks() -> dict[str, tuple[list[Task], list[Task]]]:
    bench = MedVistaBench(BenchConfig(seed=11))
    return {
        family: (_draw(bench, family, Split.TRAIN, NUM_TRAIN), _draw(bench, family, Split.TEST, NUM_TEST)) for family in SHARES
    }


def _draw(bench: MedVistaBench, family: str, split: Split, number: int) -> list[Task]:
    return [task for index in range(number) if (task := bench.make(family, split, index)) is not None]


def _chance(tasks: list[Task]) -> float:
    return float(np.mean([task.chance for task in tasks]))


@pytest.mark.parametrize("family", list(SHARES))
def test_the_commonest_answer_stays_near_chance(family: str, tasks: dict[str, tuple[list[Task], list[Task]]]) -> None:
    train, test = tasks[family]
    assert shortcuts.accuracy(test, shortcuts.commonest(train, test)) <= _chance(test) + MARGINS[family]


@pytest.mark.parametrize("family", list(SHARES))
def test_the_question_alone_stays_near_chance(family: str, tasks: dict[str, tuple[list[Task], list[Task]]]) -> None:
    train, test = tasks[family]
    assert shortcuts.accuracy(test, shortcuts.from_question(train, test)) <= _chance(test) + MARGINS[family]


def test_measuring_the_loose_box_is_no_substitute_for_an_outline() -> None:
    """It takes one call less; an outline is right nine times of ten."""
    bench = MedVistaBench(BenchConfig(seed=11))
    tasks = [task for split in (Split.TRAIN, Split.TEST) for task in _draw(bench, "lesion_size", split, 120)]
    measured = [measure_box(bench.open(task)[0], task.regions[-1]).long_axis for task in tasks]
    right = [grade(task, f"{length:.0f}") for task, length in zip(tasks, measured, strict=True)]
    assert np.mean(right) <= 0.4
