"""What is the mean value of a box in one slice of a scan? `enhance` shows the slice, `measure` reads it.

The wanted mean is drawn first, so that no value is common.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from medvista_ray.tasks.bench.comparing import cut
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, pick, written
from medvista_ray.tasks.bench.families.box_measure import MEAN_BINS_HU
from medvista_ray.tasks.bench.pictures import shows_something
from medvista_ray.tasks.bench.scans import block, draw_scan, introduced
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Box, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

MEAN_BINS_SIGNAL = ((30, 60), (60, 110), (110, 200), (200, 350), (350, 550), (550, 800), (800, 1200))
TOLERANCE, SLACK = 0.06, 4.0
NUM_TRIES = 40
QUESTIONS = (
    "{scan} What is the mean value in box {box} of slice {slice}?",
    "{scan} Give the mean of region {box} in slice {slice}.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the bins of the mean."""
    subject: Subject = pick(rng, wide_subjects(split, volume=True))
    recipe = draw_scan(rng, subject)
    if not shows_something(recipe):
        return None
    values = block(recipe)
    bins = MEAN_BINS_HU if subject.modality == "CT" else MEAN_BINS_SIGNAL
    low, high = bins[index % len(bins)]
    for _ in range(NUM_TRIES):
        number = int(rng.integers(len(values)))
        box = draw_box(rng, int(rng.integers(90, 300)), int(rng.integers(90, 300)), margin=20)
        mean = float(cut(values[number], box).mean())
        if low <= mean < high and _is_steady(values[number], box, mean):
            break
    else:
        return None
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(scan=introduced(recipe), box=written(box), slice=number),
        answer=f"{np.rint(mean):.0f}",
        kind=AnswerKind.NUMBER,
        tolerance=TOLERANCE,
        slack=SLACK,
        chance=1 / len(bins) / 2,
        recipe=recipe,
        regions=(box,),
        plan=("enhance", "measure"),
        facts={"slice": number},
    )


def _is_steady(values: NDArray[Any], box: Box, mean: float) -> bool:
    """Whether a pixel more or less on every side leaves the mean within half of what the grader allows."""
    steps = [-(-1000 // extent) for extent in values.shape]
    allowed = max(TOLERANCE * abs(mean), SLACK) / 2
    turns = ((box[0] - k * steps[1], box[1] - k * steps[0], box[2] + k * steps[1], box[3] + k * steps[0]) for k in (-1, 1))
    return all(abs(float(cut(values, turn).mean()) - mean) <= allowed for turn in turns)


def play(hand: BenchExpert) -> Iterator[str]:
    """Show the slice, measure the box there."""
    yield hand.call("enhance", image_index=0, slice_index=hand.task.facts["slice"])
    yield hand.call("measure", image_index=1, bbox=hand.task.regions[0])
    yield hand.answer(hand.field("mean"))
