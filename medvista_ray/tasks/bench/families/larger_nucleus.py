"""Which of two nuclei is larger, the one at point A or the one at point B? Outline both from their points, then compare.

Points do not tell sizes, as boxes would. The truth is the labelled area; the larger one is at least 2.5 times the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator
from scipy.ndimage import distance_transform_edt
from skimage.measure import regionprops

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick
from medvista_ray.tasks.bench.families.more_nuclei import labelled_slides
from medvista_ray.tasks.bench.pictures import box_of, orient, plate
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

SIDE_PX = (110, 170)
RATIO = 2.5
MIN_AREA_PX, MIN_SOLIDITY = 100, 0.9
QUESTIONS = (
    "Which nucleus is larger, the one at point A {a} or the one at point B {b}?",
    "Outline the nuclei at A {a} and at B {b}. Whose area is larger, A or B?",
)


@lru_cache(maxsize=4)
def areas(name: str) -> dict[int, float]:
    """Area in pixels of each nucleus that is one compact piece."""
    props = regionprops(plate(name).labels)
    return {int(p.label): float(p.area) for p in props if p.area >= MIN_AREA_PX and p.solidity >= MIN_SOLIDITY}


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether A or B is the larger."""
    able = labelled_slides(split)
    if not able:
        return None
    subject, name = pick(rng, able)
    recipe = draw_view(rng, subject, side=int(rng.integers(*SIDE_PX))) | {"plate": name}
    if plate(name).pixels.ndim == 3:
        recipe |= {"view": "hematoxylin", "window": [0.0, 255.0]}
    shown = orient(plate(name).labels, recipe)  # pyright: ignore[reportArgumentType]
    whole = [n for n in np.unique(shown) if n in areas(name) and (shown == n).sum() == areas(name)[n]]
    if len(whole) < 2:
        return None
    first, second = (int(n) for n in rng.choice(whole, 2, replace=False))
    small, large = sorted((first, second), key=lambda n: areas(name)[n])
    if areas(name)[large] < RATIO * areas(name)[small]:
        return None
    pair = (large, small) if index % 2 == 0 else (small, large)
    points = [_point(shown == number) for number in pair]
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(a=points[0], b=points[1]),
        answer="AB"[index % 2],
        kind=AnswerKind.CHOICE,
        choices=("A", "B"),
        chance=0.5,
        recipe=recipe,
        regions=tuple(box_of(shown == number) for number in pair),
        plan=("segment_prompt", "segment_prompt", "measure"),
        facts={"points": points},
    )


def _point(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """x, y (0..1000) of the pixel deepest inside."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]  # pyright: ignore[reportCallIssue, reportArgumentType, reportIndexIssue]
    row, col = np.unravel_index(int(np.argmax(depth)), mask.shape)
    return [round(1000 * (col + 0.5) / mask.shape[1]), round(1000 * (row + 0.5) / mask.shape[0])]


def play(hand: BenchExpert) -> Iterator[str]:
    """Outline from each point, compare the areas."""
    for point in hand.task.facts["points"]:
        yield hand.call("segment_prompt", points=[point])
    yield hand.call("measure", mask_index=0, reference_mask_index=1)
    yield hand.answer("A" if "region is larger" in hand.reply else "B")
