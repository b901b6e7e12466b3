"""Is the outlined structure longer than so many millimetres? Segment from a loose box, measure the mask, compare.

The pictures are those of `lesion_size`. The asked length is drawn first and the structure second, at least 1.4 times as
long or as short: the segmenter's outlines are up to that much too long, which a tolerance of 15 % does not forgive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import log_uniform, loosen, pick, written
from medvista_ray.tasks.bench.families.lesion_size import pool
from medvista_ray.tasks.bench.pictures import box_of, orient, volume
from medvista_ray.tasks.bench.subjects import BY_ID
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

RANGE_MM = (25.0, 40.0)
"""Of the asked length: structures of both sides exist for each."""
RATIO = 1.4
QUESTIONS = (
    "Is the structure in box {box} longer than {length} mm? yes or no",
    "Is the largest diameter of the lesion or organ inside {box} more than {length} mm? Answer yes or no.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates yes and no."""
    is_longer = index % 2 == 0
    length = round(log_uniform(rng, *RANGE_MM))
    candidates = [one for group in pool(split).values() for one in group]
    if is_longer:
        able = [one for one in candidates if one.structure.length_mm >= length * RATIO]
    else:
        able = [one for one in candidates if one.structure.length_mm <= length / RATIO]
    if not able:
        return None
    chosen = pick(rng, able)
    labels = volume(chosen.structure.subject).labels
    assert labels is not None
    gold = box_of(orient(np.asarray(labels[chosen.structure.slice]) == chosen.structure.label, chosen.recipe))
    box = loosen(rng, gold, 0.12, 0.3)
    return Draft(
        subject=chosen.structure.subject,
        modality=BY_ID[chosen.structure.subject].kind,
        question=pick(rng, QUESTIONS).format(box=written(box), length=length),
        answer="yes" if is_longer else "no",
        kind=AnswerKind.CHOICE,
        choices=("yes", "no"),
        chance=0.5,
        recipe=chosen.recipe,
        regions=(gold, box),
        plan=("segment_medical", "measure"),
        facts={"length_mm": length},
    )


def play(hand: BenchExpert) -> Iterator[str]:
    """Outline, measure, compare."""
    yield hand.call("segment_medical", image_index=0, bbox=hand.box(-1))
    yield hand.call("measure", mask_index=0)
    yield hand.answer("yes" if hand.number("long axis") > hand.task.facts["length_mm"] else "no")
