"""Which of three pictures shows the boxed region of the first one, enlarged? One call of `compare_regions` over all four.

The wrong ones are other places of the same picture in the same size; their mean values differ from the region's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.comparing import cut, grey, tell_apart, value_span
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick, written
from medvista_ray.tasks.bench.pictures import render, shows_something
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Box, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

NUM_CANDIDATES = 3
MIN_SIDE_PX = 12
NUM_TRIES = 60
QUESTIONS = (
    "Which picture shows region {box} of image 0: image 1, image 2 or image 3?",
    "Region {box} of image 0 is shown enlarged in one of image 1, image 2, image 3. Which one?",
)


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles the place of the right picture."""
    subject: Subject = pick(rng, wide_subjects(split))
    recipe = draw_view(rng, subject)
    values = grey(render(recipe))
    side = int(values.shape[0] * rng.uniform(0.18, 0.32))
    places = _places(rng, values, side) if side >= MIN_SIDE_PX else []
    if len(places) < NUM_CANDIDATES:
        return None
    box = _box(places[0], side, values.shape[0])
    right = index % NUM_CANDIDATES
    order = [*places[1 : right + 1], places[0], *places[right + 1 :]]
    shown = [recipe, *(_crop(recipe, place, side) for place in order)]
    if not all(map(shows_something, shown)):
        return None
    return Draft(
        subject=subject.id,
        modality=subject.kind,
        question=pick(rng, QUESTIONS).format(box=written(box)),
        answer=f"image {right + 1}",
        kind=AnswerKind.CHOICE,
        choices=tuple(f"image {number + 1}" for number in range(NUM_CANDIDATES)),
        chance=1 / NUM_CANDIDATES,
        recipe={"images": shown},
        regions=(box,),
        plan=("compare_regions",),
    )


def _places(rng: Generator, values: np.ndarray, side: int) -> list[tuple[int, int]]:
    """Corners of the region and of enough places whose means differ from its own, in the picture's pixels."""
    span = value_span(values)
    found: list[tuple[int, int]] = []
    for _ in range(NUM_TRIES):
        row, col = (int(rng.integers(extent - side + 1)) for extent in values.shape)
        box = _box((row, col), side, values.shape[0])
        own = cut(values, box)
        first = cut(values, _box(found[0], side, values.shape[0])) if found else own
        if not found or tell_apart(own, first, span, most=1.0):
            found.append((row, col))
        if len(found) == NUM_CANDIDATES:
            break
    return found


def _box(place: tuple[int, int], side: int, extent: int) -> Box:
    row, col = place
    x0, y0, x1, y1 = (round(1000 * edge / extent) for edge in (col, row, col + side, row + side))
    return x0, y0, x1, y1


def _crop(recipe: dict[str, Any], place: tuple[int, int], side: int) -> dict[str, Any]:
    """The recipe of a part of a recipe's picture; flips turn the corner's place, too."""
    row, col, height, width = recipe["crop"]
    flip_rows, flip_cols = recipe["flip"]
    down = height - place[0] - side if flip_rows else place[0]
    right = width - place[1] - side if flip_cols else place[1]
    return recipe | {"crop": [row + down, col + right, side, side]}


def play(hand: BenchExpert) -> Iterator[str]:
    """Compare all, and take the mean nearest to the region's."""
    region = {"image_index": 0, "bbox": list(hand.task.regions[0])}
    yield hand.call("compare_regions", items=[region, *({"image_index": i + 1} for i in range(NUM_CANDIDATES))])
    means = [float(value) for value in re.findall(r"\(mean (\S+)", hand.reply)]
    gaps = [abs(mean - means[0]) for mean in means[1:]]
    yield hand.answer(f"image {1 + int(np.argmin(gaps))}" if gaps else "unknown")
