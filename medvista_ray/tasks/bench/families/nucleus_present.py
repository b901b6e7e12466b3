"""Is there a nucleus in the middle of a small box? In a wide view of a slide it must be zoomed to be seen.

Training slides are shown in colour or as the density of their nuclear stain, which looks like fluorescence.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import clip_box, draw_view, pick, written
from medvista_ray.tasks.bench.pictures import orient, plate
from medvista_ray.tasks.bench.subjects import Subject, subjects
from medvista_ray.types import AnswerKind, Box, Split

QUESTIONS = (
    "Is there a nucleus in the middle of box {box}? yes or no",
    "Does a cell nucleus fill the centre of {box}? Answer yes or no.",
)
BOX_SIDE_PX = (44, 64)
MIN_SIDE = 400
"""Pixels: smaller plates are a close-up already."""


@lru_cache(maxsize=8)
def depth_maps(name: str) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Distance in pixels to the nearest background (inside nuclei) and to the nearest nucleus (outside), each [H, W]."""
    labels = plate(name).labels
    assert labels is not None
    nuclei = np.asarray(labels) > 0
    inside, outside = (np.asarray(distance_transform_edt(part), np.float32) for part in (nuclei, ~nuclei))
    return inside, outside


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates yes and no."""
    able = [s for s in subjects(split, modality="microscopy") if _is_labelled(s.plates[0])]
    if not able:
        return None
    subject: Subject = pick(rng, able)
    name = subject.plates[0]
    full = min(plate(name).pixels.shape[:2])
    recipe = draw_view(rng, subject, side=int(rng.integers(min(420, full - 1), min(760, full) + 1)))
    recipe["plate"] = name
    if plate(name).pixels.ndim == 3 and rng.random() < 0.5:
        recipe |= {"view": "hematoxylin", "window": [0.0, 255.0]}
    positive = index % 2 == 0
    box = _place(rng, name, recipe, positive)
    if box is None:
        return None
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS).format(box=written(box)),
        answer="yes" if positive else "no",
        kind=AnswerKind.CHOICE,
        choices=("yes", "no"),
        chance=0.5,
        recipe=recipe,
        regions=(box,),
        plan=("zoom_in",),
    )


def _is_labelled(name: str) -> bool:
    return plate(name).labels is not None and min(plate(name).pixels.shape[:2]) >= MIN_SIDE


def _place(rng: Generator, name: str, recipe: dict[str, object], positive: bool) -> Box | None:
    """A box centred well inside a nucleus, or well away from all."""
    inside, outside = (orient(each, recipe) for each in depth_maps(name))
    half = int(rng.integers(*BOX_SIDE_PX)) // 2
    allowed = inside >= 5.0 if positive else outside >= 0.6 * half
    allowed[:half], allowed[-half:], allowed[:, :half], allowed[:, -half:] = (False,) * 4
    places = np.argwhere(allowed)
    if len(places) == 0:
        return None
    row, col = pick(rng, places)
    scale = 1000 / allowed.shape[0]
    return clip_box(((col - half) * scale, (row - half) * scale, (col + half) * scale, (row + half) * scale))
