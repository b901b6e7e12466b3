"""Is the outlined structure longer than so many millimetres? Segment from a loose box, measure the mask, compare.

The pictures are those of `lesion_size`. The asked length is drawn first and the structure second, at least 1.4 times as
long or as short: the segmenter's outlines are up to that much too long, which a tolerance of 15 % does not forgive.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import log_uniform, loosen, pick, written
from medvista_ray.tasks.bench.families.lesion_size import Candidate, Structure, pool
from medvista_ray.tasks.bench.pictures import box_of, orient, volume
from medvista_ray.tasks.bench.subjects import BY_ID
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

RANGE_MM = (25.0, 40.0)
"""Of the asked length: structures of both sides exist for each."""
RATIO = 1.4
LOOSE = 0.12, 0.3
"""Margin of the question's box on each side, as a share of the structure's."""
QUESTIONS = (
    "Is the structure in box {box} longer than {length} mm? yes or no",
    "Is the largest diameter of the lesion or organ inside {box} more than {length} mm? Answer yes or no.",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates yes and no."""
    found = draw_case(rng, split, is_longer=index % 2 == 0)
    if found is None:
        return None
    chosen, length = found
    gold = box_of(orient(outline_of(chosen.structure), chosen.recipe))
    box = loosen(rng, gold, *LOOSE)
    return Draft(
        subject=chosen.structure.subject,
        modality=BY_ID[chosen.structure.subject].kind,
        question=pick(rng, QUESTIONS).format(box=written(box), length=length),
        answer=("yes", "no")[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("yes", "no"),
        chance=0.5,
        recipe=chosen.recipe,
        regions=(gold, box),
        plan=("segment_medical", "measure"),
        facts={"length_mm": length},
    )


def draw_case(rng: Generator, split: Split, *, is_longer: bool) -> tuple[Candidate, int] | None:
    """A length in mm, and a structure that is clearly longer or clearly not; None if the split has none."""
    length = round(log_uniform(rng, *RANGE_MM))
    every = [one for group in pool(split).values() for one in group]
    able = [one for one in every if _is_clear(one.structure.length_mm, length, is_longer=is_longer)]
    return (pick(rng, able), length) if able else None


def _is_clear(true_mm: float, asked_mm: float, *, is_longer: bool) -> bool:
    return true_mm >= RATIO * asked_mm if is_longer else true_mm <= asked_mm / RATIO


def outline_of(structure: Structure) -> NDArray[np.bool_]:
    """[H, W] its mask in its whole slice."""
    labels = volume(structure.subject).labels
    assert labels is not None
    return np.asarray(labels[structure.slice]) == structure.label


def play(hand: BenchExpert) -> Iterator[str]:
    """Outline, measure, compare."""
    yield hand.call("segment_medical", image_index=0, bbox=hand.box(-1))
    yield hand.call("measure", mask_index=0)
    yield hand.answer("yes" if hand.number("long axis") > hand.task.facts["length_mm"] else "no")
