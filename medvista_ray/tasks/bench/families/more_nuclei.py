"""Which of two boxes of a slide holds more nuclei? Zoom in on each, `ground` the nuclei there, compare the counts.

The truth is the number of labelled nuclei whose centre lies in the box; the boxes have one size and stand at random, and
the larger count is at least 1.8 times the other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import center_of_mass

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, pick, written
from medvista_ray.tasks.bench.pictures import plate
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Box, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

MIN_SIDE = 400
"""Pixels of a plate: smaller ones are a close-up already."""
MIN_RATIO, MIN_GAP, MIN_COUNT = 1.8, 4, 2
BOX_SHARE = (0.22, 0.34)
NUM_TRIES = 40
QUESTIONS = (
    "Which box holds more nuclei, A {a} or B {b}?",
    "Count the nuclei in A {a} and in B {b}. Where are more, A or B?",
)


def labelled_slides(split: Split) -> list[tuple[Subject, str]]:
    """Slides with an instance mask, and the name of each one's plate."""
    slides = [(s, s.plates[0]) for s in wide_subjects(split, "microscopy")]
    return [(s, name) for s, name in slides if plate(name).labels is not None and min(plate(name).pixels.shape[:2]) >= MIN_SIDE]


@lru_cache(maxsize=4)
def centres(name: str) -> NDArray[np.float64]:
    """[nuclei, 2] row and column of each nucleus's centre."""
    labels = plate(name).labels
    assert labels is not None
    numbers = np.unique(labels)
    return np.array(center_of_mass(labels > 0, labels, numbers[numbers > 0]))


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B holds more."""
    able = labelled_slides(split)
    if not able:
        return None
    subject, name = pick(rng, able)
    recipe = draw_view(rng, subject, side=int(rng.integers(380, 512)))
    recipe |= {"plate": name, "flip": [False, False]}
    width = round(1000 * rng.uniform(*BOX_SHARE))
    for _ in range(NUM_TRIES):
        boxes = [draw_box(rng, width, width) for _ in range(2)]
        few, many = sorted(counts := [_count(name, recipe["crop"], box) for box in boxes])
        if few >= MIN_COUNT and many >= max(MIN_RATIO * few, few + MIN_GAP):
            break
    else:
        return None
    if (counts[0] > counts[1]) != (index % 2 == 0):
        boxes = boxes[::-1]
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(a=written(boxes[0]), b=written(boxes[1])),
        answer="AB"[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("A", "B"),
        chance=0.5,
        recipe=recipe,
        regions=tuple(boxes),
        plan=("zoom_in", "ground", "zoom_in", "ground"),
    )


def _count(name: str, crop: list[int], box: Box) -> int:
    row, col, height, width = crop
    low = np.array([row + box[1] * height / 1000, col + box[0] * width / 1000])
    high = np.array([row + box[3] * height / 1000, col + box[2] * width / 1000])
    return int(((centres(name) >= low) & (centres(name) < high)).all(axis=1).sum())


def play(hand: BenchExpert) -> Iterator[str]:
    """Zoom in and count in each box, compare."""
    found: list[int] = []
    for number, box in enumerate(hand.task.regions):
        yield hand.call("zoom_in", image_index=0, bbox=box)
        yield hand.call("ground", image_index=number + 1, phrase="nuclei")
        told = re.match(r"(\d+) found", hand.reply)
        found.append(int(told[1]) if told else 0)
    yield hand.answer("A" if found[0] > found[1] else "B")
