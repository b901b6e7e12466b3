"""How was the second picture turned? Looking at both is enough: a family of two pictures that needs no tool."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick
from medvista_ray.tasks.bench.pictures import shows_something
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

TURNS = ("turned right", "turned upside down", "turned left", "mirrored")
QUESTIONS = (
    "Image 1 is image 0 after one change. Which one: turned right, turned upside down, turned left or mirrored?",
    "How was image 0 changed into image 1? Options: turned right, turned upside down, turned left, mirrored.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the changes: a quarter, a half, three quarters clockwise, left and right swapped."""
    subject: Subject = pick(rng, wide_subjects(split))
    recipe = draw_view(rng, subject)
    if not shows_something(recipe):
        return None
    number = index % len(TURNS)
    rows, cols = recipe["flip"]
    change = {"flip": [rows, not cols]} if TURNS[number] == "mirrored" else {"turn": number + 1}
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS),
        answer=TURNS[number],
        kind=AnswerKind.CHOICE,
        choices=TURNS,
        chance=1 / len(TURNS),
        recipe={"images": [recipe, recipe | change]},
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Look."""
    yield hand.answer(hand.task.answer)
