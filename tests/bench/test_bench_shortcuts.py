"""No shortcut answers the bench: neither the commonest answer nor the question's words and numbers alone.

Both baselines are fitted on training tasks and scored on test subjects by the real grader; each must stay within five
points of the family's stated chance.
"""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from medvista_ray.config import BenchConfig
from medvista_ray.tasks.bench.families import SHARES
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tasks.graders import grade
from medvista_ray.types import AnswerKind, Split, Task

pytestmark = pytest.mark.assets
NUM_TRAIN, NUM_TEST = 240, 360
MARGIN = 0.05
NUM_COORDINATES = 8


@pytest.fixture(scope="module")
def bench() -> MedVistaBench:
    return MedVistaBench(BenchConfig(seed=11))


@pytest.fixture(scope="module")
def tasks(bench: MedVistaBench) -> dict[str, tuple[list[Task], list[Task]]]:
    return {
        family: (_draw(bench, family, Split.TRAIN, NUM_TRAIN), _draw(bench, family, Split.TEST, NUM_TEST)) for family in SHARES
    }


def _draw(bench: MedVistaBench, family: str, split: Split, number: int) -> list[Task]:
    return [task for index in range(number) if (task := bench.make(family, split, index)) is not None]


def _accuracy(tasks: list[Task], answers: list[str]) -> float:
    return float(np.mean([grade(task, answer) for task, answer in zip(tasks, answers, strict=True)]))


def _features(task: Task, words: list[str]) -> NDArray[np.float64]:
    """Word counts, the first coordinates (linear and log), and sizes and centres of the boxes."""
    numbers = [float(n) for n in re.findall(r"\d+", task.question)][:NUM_COORDINATES]
    numbers += [0.0] * (NUM_COORDINATES - len(numbers))
    boxes = np.array(numbers).reshape(-1, 4)
    sizes = np.concatenate([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    counts = [float(word in task.question.lower()) for word in words]
    return np.concatenate([[1.0], counts, boxes.ravel() / 1000, sizes / 1000, np.log1p(np.abs(sizes)) / 7])


def _ridge(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.linalg.solve(x.T @ x + 1.0 * np.eye(x.shape[1]), x.T @ y)


def _question_only(train: list[Task], test: list[Task]) -> list[str]:
    """A linear model of the question: classes for choices and texts, the logarithm of the size for numbers."""
    words = sorted({word for task in train for word in re.findall(r"[a-z]+", task.question.lower())})[:200]
    x, x_test = (np.stack([_features(task, words) for task in group]) for group in (train, test))
    if train[0].kind is AnswerKind.NUMBER:
        values = np.array([float(task.answer) for task in train])
        scale = np.sign(values) * np.log1p(np.abs(values))
        found = x_test @ _ridge(x, scale)
        return [f"{np.sign(v) * np.expm1(abs(v)):.0f}" for v in found]
    classes = sorted({task.answer for task in train})[:60]
    targets = np.array([[float(task.answer == name) for name in classes] for task in train])
    return [classes[i] for i in (x_test @ _ridge(x, targets)).argmax(1)]


@pytest.mark.parametrize("family", list(SHARES))
def test_the_commonest_answer_stays_near_chance(family: str, tasks: dict[str, tuple[list[Task], list[Task]]]) -> None:
    train, test = tasks[family]
    commonest = Counter(task.answer for task in train).most_common(1)[0][0]
    assert _accuracy(test, [commonest] * len(test)) <= test[0].chance + MARGIN


@pytest.mark.parametrize("family", list(SHARES))
def test_the_question_alone_stays_near_chance(family: str, tasks: dict[str, tuple[list[Task], list[Task]]]) -> None:
    train, test = tasks[family]
    assert _accuracy(test, _question_only(train, test)) <= test[0].chance + MARGIN
