"""Scans for the wide families: part of a volume as one picture with slices, and how questions speak of it.

Invariant: as `drawing`: every choice comes from the generator that is passed in. A scan is never flipped, so that its
planes keep their meaning. Called by the families only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from medvista_ray.tasks.bench.drawing import log_uniform
from medvista_ray.tasks.bench.pictures import CT_WINDOWS, Recipe, volume
from medvista_ray.tasks.bench.subjects import Subject

MAX_SIDE, MAX_SLICES = 256, 48
"""Of a scan in rows and columns, and in slices: it travels by value."""
MIN_SIDE = 64


def draw_scan(rng: Generator, subject: Subject, num_slices: int | None = None, side: int | None = None) -> dict[str, Any]:
    """A recipe of a block of a subject's volume, of these sizes or of random ones, anywhere in it."""
    shape = volume(subject.plates[0]).values.shape
    num = min(shape[0], MAX_SLICES, num_slices or round(log_uniform(rng, 10, 40)))
    edge = min(*shape[1:], MAX_SIDE, side or round(log_uniform(rng, 90, MAX_SIDE)))
    first, row, col = (int(rng.integers(extent - part + 1)) for extent, part in zip(shape, (num, edge, edge), strict=True))
    recipe = {"plate": subject.plates[0], "slices": [first, first + num], "crop": [row, col, edge, edge]}
    return recipe | {"window": scan_window(rng, subject, block(recipe))}


def scan_window(rng: Generator, subject: Subject, values: NDArray[Any]) -> list[float]:
    """A CT preset, or the block's own range stretched at random."""
    if subject.modality == "CT":
        return list(CT_WINDOWS[int(rng.integers(len(CT_WINDOWS)))])
    low, high = np.percentile(values[:, ::4, ::4], [0.5, 99.7])
    return [float(low), float(low + max(high - low, 1.0) * rng.uniform(0.8, 1.2))]


def block(recipe: Recipe) -> NDArray[Any]:
    """[slices, rows, columns] native values of a scan's recipe."""
    first, stop = recipe["slices"]
    row, col, height, width = recipe["crop"]
    return volume(str(recipe["plate"])).values[first:stop, row : row + height, col : col + width]


def introduced(recipe: Recipe) -> str:
    """The sentence that tells a policy which slices there are."""
    first, stop = recipe["slices"]
    return f"Image 0 is a scan, slices 0 to {stop - first - 1}."
