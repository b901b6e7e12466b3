"""Ways to answer without the tools: the commonest answer, the question's words and numbers, a thumbnail of the pictures.

Each baseline is fitted on training tasks, and answers tasks of unseen subjects; the real grader scores it. Invariant: a
baseline sees nothing that a policy does not. Called by the audit and by the shortcut tests.

Suffixes: N tasks, F features.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.tasks.scoring import is_right
from medvista_ray.types import AnswerKind, MedImage, Task

Floats = NDArray[np.float64]
_NUM_COORDINATES = 12
_MAX_WORDS, _MAX_CLASSES = 200, 60
_THUMBNAIL = 12
"""Side of a thumbnail, in pixels."""
_MAX_IMAGES = 4
_RIDGE_QUESTION, _RIDGE_PICTURE = 1.0, 30.0


def accuracy(tasks: Sequence[Task], answers: Sequence[str]) -> float:
    """Share of right answers."""
    return float(np.mean([is_right(task, answer) for task, answer in zip(tasks, answers, strict=True)]))


def commonest(train: Sequence[Task], test: Sequence[Task]) -> list[str]:
    """The answer that most training tasks have; of yes-or-no-like tasks with choices of their own, the first choice."""
    answer = Counter(task.answer for task in train).most_common(1)[0][0]
    return [answer if answer in task.choices or not task.choices else task.choices[0] for task in test]


def from_question(train: Sequence[Task], test: Sequence[Task]) -> list[str]:
    """A linear model of the question's words, its numbers and the sizes of its boxes."""
    words = sorted({word for task in train for word in re.findall(r"[a-z]+", task.question.lower())})[:_MAX_WORDS]
    x, x_test = (np.stack([_question(task, words) for task in group]) for group in (train, test))
    return _predict(train, test, x, x_test, _RIDGE_QUESTION)


def from_thumbnail(train: Sequence[Task], test: Sequence[Task], open_images: Callable[[Task], Sequence[MedImage]]) -> list[str]:
    """A linear model of the pictures, each as 12 x 12 grey values (of a scan, the slice that is shown)."""
    x, x_test = (np.stack([_thumbnails(open_images(task)) for task in group]) for group in (train, test))
    return _predict(train, test, x, x_test, _RIDGE_PICTURE)


def _question(task: Task, words: Sequence[str]) -> Floats:
    """Word counts, the first coordinates (linear and log), and sizes of the boxes."""
    numbers = [float(n) for n in re.findall(r"\d+", task.question)][:_NUM_COORDINATES]
    numbers += [0.0] * (_NUM_COORDINATES - len(numbers))
    boxes = np.array(numbers).reshape(-1, 4)
    sizes = np.concatenate([boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]])
    counts = [float(word in task.question.lower()) for word in words]
    return np.concatenate([[1.0], counts, boxes.ravel() / 1000, sizes / 1000, np.log1p(np.abs(sizes)) / 7])


def _thumbnails(images: Sequence[MedImage]) -> Floats:
    size = (_THUMBNAIL, _THUMBNAIL)
    grey = [Image.fromarray(image.display()).convert("L").resize(size, Image.Resampling.BOX) for image in images[:_MAX_IMAGES]]
    found = np.zeros((_MAX_IMAGES, _THUMBNAIL**2))
    found[: len(grey)] = [np.asarray(picture, dtype=np.float64).ravel() / 255.0 for picture in grey]
    return np.concatenate([[1.0], found.ravel()])


def _predict(train: Sequence[Task], test: Sequence[Task], x_NF: Floats, x_test_NF: Floats, ridge: float) -> list[str]:
    """Logarithm of the size for numbers, place among the task's own choices where these vary, else a class."""
    if train[0].kind is AnswerKind.NUMBER:
        values = np.array([float(task.answer) for task in train])
        found = x_test_NF @ _ridge(x_NF, np.sign(values) * np.log1p(np.abs(values)), ridge)
        return [f"{np.sign(v) * np.expm1(abs(v)):.0f}" for v in found]
    if len({task.choices for task in train}) > 1:
        places = np.array([float(task.choices.index(task.answer)) for task in train])
        found = x_test_NF @ _ridge(x_NF, places, ridge)
        return [task.choices[int(np.clip(np.rint(v), 0, len(task.choices) - 1))] for task, v in zip(test, found, strict=True)]
    classes = sorted({task.answer for task in train})[:_MAX_CLASSES]
    targets = np.array([[float(task.answer == name) for name in classes] for task in train])
    return [classes[i] for i in (x_test_NF @ _ridge(x_NF, targets, ridge)).argmax(1)]


def _ridge(x_NF: Floats, y: Floats, strength: float) -> Floats:
    return np.asarray(np.linalg.solve(x_NF.T @ x_NF + strength * np.eye(x_NF.shape[1]), x_NF.T @ y), dtype=np.float64)
