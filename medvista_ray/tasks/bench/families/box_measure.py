"""How wide or high is a box, or what is its mean value? One call of `measure`, one field to read.

Millimetres are drawn first and the field of view second, both log-uniform, so that the box's coordinates say little.
"""

from __future__ import annotations

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, log_uniform, pick, written
from medvista_ray.tasks.bench.pictures import plate, render, volume
from medvista_ray.tasks.bench.subjects import Subject, subjects
from medvista_ray.types import AnswerKind, Box, MedImage, Split

RANGE_MM = (12.0, 150.0)
TOLERANCE = 0.06
QUESTIONS = {
    "width": ("How wide is box {box}, in mm?", "Give the width in mm of region {box}."),
    "height": ("How high is box {box}, in mm?", "Give the height in mm of region {box}."),
    "mean": ("What is the mean value in box {box}?", "Give the mean of region {box}."),
}
MEAN_BINS_HU = ((-990, -800), (-800, -500), (-500, -150), (-150, 10), (10, 60), (60, 150), (150, 400))
"""Bins that the wanted mean cycles through, in HU: no value is common."""


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles width, height and mean."""
    wanted = ("width", "height", "mean")[index % 3]
    able = [s for s in subjects(split) if _spacing(s) is not None and (wanted != "mean" or _is_ct(s))]
    if not able:
        return None
    subject: Subject = pick(rng, able)
    recipe = draw_view(rng, subject)
    spacing = _spacing(subject)
    if wanted == "mean" or spacing is None:
        return _ask_mean(rng, subject, recipe, index // 3)
    return _ask_length(rng, subject, recipe, spacing, wanted)


def _is_ct(subject: Subject) -> bool:
    return subject.is_volume and subject.modality == "CT"


def _spacing(subject: Subject) -> float | None:
    name = subject.plates[0]
    if subject.is_volume:
        return volume(name).spacing_mm[1]
    spacing = plate(name).spacing_mm
    return spacing[0] if spacing else None


def _ask_length(rng: Generator, subject: Subject, recipe: dict[str, object], spacing: float, wanted: str) -> Draft | None:
    length = log_uniform(rng, *RANGE_MM)
    view = log_uniform(rng, length / 0.85, length / 0.06)
    full = recipe["crop"][2]  # pyright: ignore[reportIndexIssue]
    side = int(view / spacing)
    if not 40 <= side <= full:
        return None
    recipe["crop"] = [*_subcrop(rng, recipe["crop"], side), side, side]
    share = round(1000 * length / (side * spacing))
    other = int(np.clip(share * log_uniform(rng, 0.4, 2.5), 40, 900))
    box = draw_box(rng, *((share, other) if wanted == "width" else (other, share)))
    exact = share * side * spacing / 1000
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS[wanted]).format(box=written(box)),
        answer=f"{exact:.0f}",
        kind=AnswerKind.NUMBER,
        tolerance=TOLERANCE,
        slack=0.6,
        chance=float(np.log((1 + TOLERANCE) / (1 - TOLERANCE)) / np.log(RANGE_MM[1] / RANGE_MM[0])),
        recipe=recipe,
        regions=(box,),
        plan=("measure",),
    )


def _ask_mean(rng: Generator, subject: Subject, recipe: dict[str, object], index: int) -> Draft | None:
    image = render(recipe)
    low, high = MEAN_BINS_HU[index % len(MEAN_BINS_HU)]
    for _ in range(40):
        box = draw_box(rng, int(rng.integers(40, 260)), int(rng.integers(40, 260)))
        mean = float(cut(image, box).mean())
        if low <= mean < high:
            break
    else:
        return None
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS["mean"]).format(box=written(box)),
        answer=f"{mean:.0f}",
        kind=AnswerKind.NUMBER,
        tolerance=TOLERANCE,
        slack=4.0,
        chance=1 / len(MEAN_BINS_HU) / 2,
        recipe=recipe,
        regions=(box,),
        plan=("measure",),
    )


def cut(image: MedImage, box: Box) -> np.ndarray:
    """Native pixels of a box."""
    height, width = image.size
    x0, x1 = round(box[0] * width / 1000), round(box[2] * width / 1000)
    y0, y1 = round(box[1] * height / 1000), round(box[3] * height / 1000)
    return image.pixels[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def _subcrop(rng: Generator, crop: object, side: int) -> list[int]:
    row, col, height, width = crop  # pyright: ignore[reportGeneralTypeIssues]
    return [int(row + rng.integers(0, height - side + 1)), int(col + rng.integers(0, width - side + 1))]
