"""Which of two boxes is brighter (denser) on average? One call of `measure` with a reference, or two calls and a comparison.

Which box is the brighter one is a coin that neither the boxes nor their order shows.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, pick, written
from medvista_ray.tasks.bench.families.box_measure import cut
from medvista_ray.tasks.bench.pictures import render
from medvista_ray.tasks.bench.subjects import Subject, subjects
from medvista_ray.types import AnswerKind, Box, MedImage, Split

MODALITIES = ("CT", "MRI", "X-ray", "ultrasound")
CONTRAST = (0.04, 0.25)
"""Least and largest difference of the two means, as a share of the window: seen by a meter, hardly by an eye."""
QUESTIONS = (
    "Which region has the higher mean, A {a} or B {b}?",
    "Region A is {a}, region B is {b}. Which is brighter on average, A or B?",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B is the brighter."""
    able = [s for s in subjects(split) if s.modality in MODALITIES]
    if not able:
        return None
    subject: Subject = pick(rng, able)
    recipe = draw_view(rng, subject)
    pair = _two_boxes(rng, render(recipe))
    if pair is None:
        return None
    bright, dark = pair
    a, b = (bright, dark) if index % 2 == 0 else (dark, bright)
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS).format(a=written(a), b=written(b)),
        answer="A" if index % 2 == 0 else "B",
        kind=AnswerKind.CHOICE,
        choices=("A", "B"),
        chance=0.5,
        recipe=recipe,
        regions=(a, b),
        plan=("measure",),
    )


def _two_boxes(rng: Generator, image: MedImage) -> tuple[Box, Box] | None:
    """Two disjoint boxes whose means differ visibly for a meter: (brighter, darker)."""
    low, high = image.window or (float(image.pixels.min()), float(image.pixels.max()))
    grey = image.pixels if image.pixels.ndim == 2 else image.pixels.mean(2)
    flat = MedImage(np.asarray(grey, np.float32), image.modality)
    for _ in range(20):
        first, second = (draw_box(rng, int(rng.integers(60, 220)), int(rng.integers(60, 220))) for _ in range(2))
        means = [float(cut(flat, box).mean()) for box in (first, second)]
        contrast = abs(means[0] - means[1]) / max(high - low, 1e-6)
        if not _overlap(first, second) and CONTRAST[0] <= contrast <= CONTRAST[1]:
            return (first, second) if means[0] > means[1] else (second, first)
    return None


def _overlap(a: Box, b: Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
