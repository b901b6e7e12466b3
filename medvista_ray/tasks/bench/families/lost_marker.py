"""Which side marker is burned in somewhere? `ground` finds the text, `zoom_in` shows it.

The letter is drawn on a dark part of a real picture, as technologists set it beside the patient; the
question does not tell where.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, middle_in, pick
from medvista_ray.tasks.bench.families.side_marker import MARKERS
from medvista_ray.tasks.bench.lettering import burn_on_dark
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Box, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

MODALITIES = ("CT", "MRI", "X-ray", "bone scan", "fundus photograph")
"""No ultrasound: its screens carry letters of their own."""
HEIGHT = (0.032, 0.045)
"""Of the letter, as a share of the picture's side."""
MIN_HEIGHT_PX, MIN_SIDE = 18, 200
QUESTIONS = (
    "A side marker is burned in somewhere. Which one: L, R, A or P?",
    "Find the marker letter and read it. Options: L, R, A, P.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the letters."""
    subject: Subject = pick(rng, wide_subjects(split, *MODALITIES))
    recipe = draw_view(rng, subject)
    side = recipe["crop"][2]
    if side < MIN_SIDE:
        return None
    letter = MARKERS[index % len(MARKERS)]
    gold = burn_on_dark(rng, recipe, letter, max(MIN_HEIGHT_PX, round(side * rng.uniform(*HEIGHT))))
    if gold is None:
        return None
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS),
        answer=letter,
        kind=AnswerKind.CHOICE,
        choices=MARKERS,
        chance=1 / len(MARKERS),
        recipe=recipe,
        regions=(gold,),
        plan=("ground", "zoom_in"),
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Find text, zoom in where it is the marker, read; a marker that was not found cannot be read."""
    yield hand.call("ground", phrase="text")
    boxes = [tuple(map(int, found)) for found in re.findall(r"\[(\d+), (\d+), (\d+), (\d+)\]", hand.reply)]
    hit = next((box for box in boxes if _holds(box, hand.task.regions[0])), None)
    if hit is None:
        yield hand.answer("not found")
        return
    yield hand.call("zoom_in", image_index=0, bbox=list(hit))
    yield hand.answer(hand.task.answer)


def _holds(box: tuple[int, ...], gold: Box) -> bool:
    """Whether the box is about the letter: each has its middle in the other (gold has a margin around the strokes)."""
    return middle_in(box, gold) and middle_in(gold, box)
