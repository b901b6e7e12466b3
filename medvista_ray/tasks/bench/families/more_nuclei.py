"""Which of two boxes of a close-up holds more nuclei? `segment_text` outlines all nuclei; count those in each box.

The truth is the number of labelled nuclei whose centre lies in the box; the boxes have one size and stand at random, and
the larger count is at least twice the other. The picture holds few enough nuclei for the tool to tell every one.
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

from medvista_ray.tasks.bench.comparing import cut
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, middle_in, pick, written
from medvista_ray.tasks.bench.pictures import orient, plate
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

MIN_SIDE = 400
"""Pixels of a plate: smaller ones are a close-up already."""
MIN_RATIO, MIN_GAP = 2.0, 3
MAX_NUCLEI, MAX_TOLD = 16, 20
"""In the picture, and those that the tool tells at most."""
SIDE_PX = (130, 200)
"""Of the picture: a small part of a slide, flipped at random, so that a place in it says nothing."""
BOX_SHARE = (0.36, 0.48)
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
def centres(name: str) -> NDArray[np.uint8]:
    """[H, W] 1 at each nucleus's centre."""
    labels = plate(name).labels
    assert labels is not None
    numbers = np.unique(labels)
    found = np.zeros(labels.shape, np.uint8)
    found[tuple(np.array(center_of_mass(labels > 0, labels, numbers[numbers > 0])).astype(int).T)] = 1
    return found


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B holds more."""
    able = labelled_slides(split)
    if not able:
        return None
    subject, name = pick(rng, able)
    recipe = draw_view(rng, subject, side=int(rng.integers(*SIDE_PX))) | {"plate": name}
    shown = orient(centres(name), recipe)
    if shown.sum() > MAX_NUCLEI:
        return None
    width = round(1000 * rng.uniform(*BOX_SHARE))
    for _ in range(NUM_TRIES):
        boxes = [draw_box(rng, width, width) for _ in range(2)]
        few, many = sorted(counts := [int(cut(shown, box).sum()) for box in boxes])
        if many >= max(MIN_RATIO * few, few + MIN_GAP):
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
        plan=("segment_text",),
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Outline all, count the outlines whose middle is in each box."""
    yield hand.call("segment_text", target="nuclei", max_masks=MAX_TOLD)
    told = [tuple(map(int, found)) for found in re.findall(r"box \[(\d+), (\d+), (\d+), (\d+)\]", hand.reply)]
    counts = [sum(middle_in(one, box) for one in told) for box in hand.task.regions]
    yield hand.answer("A" if counts[0] > counts[1] else "B")
