"""How high or wide is a box in a coronal or sagittal slice of a scan? `enhance` shows the slice, `measure` reads it.

Slices are thicker than pixels are wide: only the true spacing of that plane gives millimetres. The length is drawn first
and the scan's extent second, so that the box's coordinates say little.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, log_uniform, pick, written
from medvista_ray.tasks.bench.pictures import shows_something, volume
from medvista_ray.tasks.bench.scans import MAX_SIDE, MAX_SLICES, draw_scan
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

RANGE_MM = (12.0, 110.0)
SHARES = (70.0, 850.0)
MIN_SLICES, MIN_SIDE_PX = 6, 32
TOLERANCE, SLACK = 0.06, 0.6
QUESTIONS = (
    "Image 0 is a scan. In its {plane} slice {slice}, how {word} is box {box}, in mm?",
    "Image 0 is a scan. Show {plane} slice {slice}: how {word} is region {box} there, in mm?",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles high and wide, coronal and sagittal."""
    word, plane = ("high", "wide")[index % 2], ("coronal", "sagittal")[index // 2 % 2]
    subject: Subject = pick(rng, wide_subjects(split, volume=True))
    spacing = volume(subject.plates[0]).spacing_mm
    length = log_uniform(rng, *RANGE_MM)
    view = length / log_uniform(rng, *SHARES) * 1000
    num_slices = round(view / spacing[0]) if word == "high" else None
    side = round(view / spacing[2]) if word == "wide" else None
    most = min(MAX_SLICES, volume(subject.plates[0]).values.shape[0])
    if (num_slices and not MIN_SLICES <= num_slices <= most) or (side and not MIN_SIDE_PX <= side <= MAX_SIDE):
        return None
    recipe = draw_scan(rng, subject, num_slices, side)
    if not shows_something(recipe):
        return None
    first, stop = recipe["slices"]
    extent = (stop - first) * spacing[0] if word == "high" else recipe["crop"][2] * spacing[2]
    share = round(1000 * length / extent)
    other = int(np.clip(share * log_uniform(rng, 0.4, 2.5), 60, 900))
    if not SHARES[0] * 0.9 <= share <= SHARES[1] * 1.1:
        return None
    box = draw_box(rng, *((other, share) if word == "high" else (share, other)))
    number = int(rng.integers(recipe["crop"][2]))
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(plane=plane, slice=number, word=word, box=written(box)),
        answer=f"{share * extent / 1000:.0f}",
        kind=AnswerKind.NUMBER,
        tolerance=TOLERANCE,
        slack=SLACK,
        chance=float(np.log((1 + TOLERANCE) / (1 - TOLERANCE)) / np.log(RANGE_MM[1] / RANGE_MM[0])),
        recipe=recipe,
        regions=(box,),
        plan=("enhance", "measure"),
        facts={"slice": number, "plane": plane, "word": word},
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Show the slice of that plane, measure the box there."""
    facts = hand.task.facts
    yield hand.call("enhance", image_index=0, params={"plane": facts["plane"]}, slice_index=facts["slice"])
    yield hand.call("measure", image_index=1, bbox=hand.task.regions[0])
    yield hand.answer(hand.field("height" if facts["word"] == "high" else "width"))
