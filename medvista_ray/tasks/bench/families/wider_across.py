"""Which box is wider in millimetres, one in the first picture or one in the second? `measure` in each, then compare.

The two pictures have different fields of view. Each pair of widths could also stand the other way round in the same
boxes, so the boxes do not tell.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_box, draw_view, log_uniform, pick, written
from medvista_ray.tasks.bench.pictures import plate, shows_something, volume
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

QUESTIONS = (
    "Which box is wider in mm, A {a} in image 0 or B {b} in image 1?",
    "Box A is {a} of image 0, box B is {b} of image 1. Which one is wider in millimetres, A or B?",
)
RANGE_MM = (12.0, 110.0)
RATIO = (1.15, 1.5)
"""Of the widths: close enough that the scale of the pictures, which a look at them tells, gives little away."""
SHARES = (110.0, 800.0)
"""Width of a box, 0..1000."""
MIN_SIDE_PX = 32


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B is the wider."""
    able = [s for s in wide_subjects(split) if spacing_of(s) is not None]
    pair: list[Subject] = [pick(rng, able) for _ in range(2)]
    low = log_uniform(rng, *RANGE_MM)
    widths = (low, low * log_uniform(rng, *RATIO))
    widths = widths[::-1] if index % 2 == 0 else widths
    shares = [log_uniform(rng, *SHARES) for _ in range(2)]
    sides = [[width / (share / 1000 * (spacing_of(s) or 1.0)) for width in widths] for s, share in zip(pair, shares, strict=True)]
    if not all(MIN_SIDE_PX <= side <= _full(s) for s, both in zip(pair, sides, strict=True) for side in both):
        return None
    recipes = [draw_view(rng, s, side=round(both[i])) for i, (s, both) in enumerate(zip(pair, sides, strict=True))]
    if not all(map(shows_something, recipes)):
        return None
    boxes = [draw_box(rng, round(share), int(rng.integers(80, 600))) for share in shares]
    return Draft(
        subject="+".join(dict.fromkeys(subject.id for subject in pair)),
        modality=pair[index // 2 % 2].kind,
        question=pick(rng, QUESTIONS).format(a=written(boxes[0]), b=written(boxes[1])),
        answer="AB"[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("A", "B"),
        chance=0.5,
        recipe={"images": recipes},
        regions=tuple(boxes),
        plan=("measure", "measure"),
    )


def spacing_of(subject: Subject) -> float | None:
    """Millimetres per pixel of its first picture, if it tells."""
    name = subject.plates[0]
    if subject.is_volume:
        return volume(name).spacing_mm[2]
    spacing = plate(name).spacing_mm
    return spacing[1] if spacing else None


def _full(subject: Subject) -> int:
    name = subject.plates[0]
    return min(volume(name).values.shape[1:] if subject.is_volume else plate(name).pixels.shape[:2])


def play(hand: BenchExpert) -> Iterator[str]:
    """Measure both, and compare the numbers."""
    widths: list[float] = []
    for index, box in enumerate(hand.task.regions):
        yield hand.call("measure", image_index=index, bbox=box)
        widths.append(hand.number("width"))
    yield hand.answer("A" if widths[0] > widths[1] else "B")
