"""Which of two boxes in two pictures has the higher mean? One call of `compare_regions` over both pictures.

The pictures are two views of one subject, in one unit but (CT) often in different windows, so that what looks brighter
need not be denser.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.comparing import cut, grey, tell_apart, value_span
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, pick, written
from medvista_ray.tasks.bench.pictures import render, shows_something
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

QUESTIONS = (
    "Which region has the higher mean value, A {a} in image 0 or B {b} in image 1?",
    "Region A is {a} of image 0, region B is {b} of image 1. Whose mean value is higher, A or B?",
)
NUM_TRIES = 12


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B is the higher."""
    subject: Subject = pick(rng, wide_subjects(split))
    recipes = [draw_view(rng, subject) for _ in range(2)]
    if len({recipe["plate"] for recipe in recipes}) != 1 or not all(map(shows_something, recipes)):
        return None
    values = [grey(render(recipe)) for recipe in recipes]
    span = value_span(values[0])
    for _ in range(NUM_TRIES):
        boxes = [draw_box(rng, int(rng.integers(80, 260)), int(rng.integers(80, 260))) for _ in range(2)]
        parts = [cut(picture, box) for picture, box in zip(values, boxes, strict=True)]
        if tell_apart(parts[0], parts[1], span):
            break
    else:
        return None
    # Swapping the pictures, not the boxes, keeps the boxes free of the answer.
    if (parts[0].mean() > parts[1].mean()) != (index % 2 == 0):
        recipes, boxes = recipes[::-1], boxes[::-1]
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(a=written(boxes[0]), b=written(boxes[1])),
        answer="AB"[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("A", "B"),
        chance=0.5,
        recipe={"images": recipes},
        regions=tuple(boxes),
        plan=("compare_regions",),
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Compare, and read which is the higher."""
    items = [{"image_index": i, "bbox": list(box)} for i, box in enumerate(hand.task.regions)]
    yield hand.call("compare_regions", items=items)
    yield hand.answer("B" if "higher)" in hand.reply else "A")
