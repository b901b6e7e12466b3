"""Which kind of picture is this? Looking is enough: a family that needs no tool."""

from __future__ import annotations

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick
from medvista_ray.tasks.bench.subjects import Subject, subjects
from medvista_ray.types import AnswerKind, Split

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound", "microscopy")
QUESTIONS = (
    "Which modality is this: CT, MRI, X-ray, ultrasound or microscopy?",
    "Name the kind of picture. Options: CT, MRI, X-ray, ultrasound, microscopy.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the modalities."""
    wanted = MODALITIES[index % len(MODALITIES)]
    able = subjects(split, modality=wanted)
    if not able:
        return None
    subject: Subject = pick(rng, able)
    return Draft(
        subject=subject.id,
        modality=wanted,
        question=pick(rng, QUESTIONS),
        answer=wanted,
        kind=AnswerKind.CHOICE,
        choices=MODALITIES,
        chance=1 / len(MODALITIES),
        recipe=draw_view(rng, subject),
    )
