"""Is a structure in one slice of a scan longer than so many millimetres? Show the slice, outline, measure, compare.

As `lesion_longer`, of the same structures, but the policy is shown another slice of the scan than the one in question.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import loosen, pick, written
from medvista_ray.tasks.bench.families.lesion_longer import LOOSE, draw_case, outline_of
from medvista_ray.tasks.bench.families.lesion_size import Candidate
from medvista_ray.tasks.bench.pictures import box_of, orient, volume
from medvista_ray.tasks.bench.scans import introduced
from medvista_ray.tasks.bench.subjects import BY_ID
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

NUM_BESIDE = (3, 9)
"""Slices that the scan goes on above and below the one in question, where the volume has them."""
QUESTIONS = (
    "{scan} In slice {slice}, is the structure in box {box} longer than {length} mm? yes or no",
    "{scan} Is the largest diameter of the lesion or organ in {box} of slice {slice} more than {length} mm? yes or no",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates yes and no."""
    found = draw_case(rng, split, is_longer=index % 2 == 0)
    if found is None:
        return None
    chosen, length = found
    recipe, number = _scan(rng, chosen)
    gold = box_of(orient(outline_of(chosen.structure), recipe))
    box = loosen(rng, gold, *LOOSE)
    question = pick(rng, QUESTIONS).format(scan=introduced(recipe), box=written(box), length=length, slice=number)
    return Draft(
        subject=chosen.structure.subject,
        modality=BY_ID[chosen.structure.subject].kind,
        question=question,
        answer=("yes", "no")[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("yes", "no"),
        chance=0.5,
        recipe=recipe,
        regions=(gold, box),
        plan=("enhance", "segment_medical", "measure"),
        facts={"length_mm": length, "slice": number},
    )


def _scan(rng: Generator, chosen: Candidate) -> tuple[dict[str, Any], int]:
    """The slices around the candidate's picture, not flipped, and its number among them."""
    here, last = chosen.structure.slice, len(volume(chosen.structure.subject).values)
    below, above = (int(number) for number in rng.integers(*NUM_BESIDE, size=2))
    first, stop = max(0, here - below), min(last, here + above + 1)
    kept = {key: chosen.recipe[key] for key in ("plate", "crop", "window")}
    return kept | {"slices": [first, stop]}, here - first


def play(hand: BenchExpert) -> Iterator[str]:
    """Show the slice, outline, measure, compare."""
    yield hand.call("enhance", image_index=0, slice_index=hand.task.facts["slice"])
    yield hand.call("segment_medical", image_index=1, bbox=hand.box(-1))
    yield hand.call("measure", mask_index=0)
    yield hand.answer("yes" if hand.number("long axis") > hand.task.facts["length_mm"] else "no")
