"""Which number is printed there? Two digits of a few pixels: `super_resolve` puts them on a finer grid.

The number is drawn on a real picture, as a scanner prints its settings; the question gives a loose box around it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, loosen, pick, written
from medvista_ray.tasks.bench.lettering import burn
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

HEIGHT_PX = (8, 12)
MIN_SIDE, MAX_SIDE = 300, 900
"""Of the picture, in pixels: the digits are at most 4 % of it."""
QUESTIONS = ("Which number is printed in box {box}?", "Read the two digits at {box}.")


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the numbers from 10 to 99."""
    subject: Subject = pick(rng, wide_subjects(split))
    recipe = draw_view(rng, subject, side=int(rng.integers(MIN_SIDE, MAX_SIDE)))
    if recipe["crop"][2] < MIN_SIDE:
        return None
    word = str(10 + (7 * index) % 90)
    gold = burn(rng, recipe, word, int(rng.integers(*HEIGHT_PX)))
    box = loosen(rng, gold, 0.3, 0.8)
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(box=written(box)),
        answer=word,
        kind=AnswerKind.NUMBER,
        chance=1 / 90,
        recipe=recipe,
        regions=(gold, box),
        plan=("super_resolve",),
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Sharpen the box, and read."""
    yield hand.call("super_resolve", image_index=0, bbox=hand.box(-1), factor=4)
    yield hand.answer(hand.task.answer)
