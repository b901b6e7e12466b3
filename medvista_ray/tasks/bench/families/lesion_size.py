"""How long is the outlined structure? Segment from a loose box, then measure the mask.

The truth is the expert's tumour mask (or, on the training CT, an organ mask). The box in the question is loose by a random
margin, so measuring the box itself misses the tolerance, and the field of view varies, so the box does not tell millimetres.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from skimage.measure import label, regionprops

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_window, log_uniform, loosen, pick, written
from medvista_ray.tasks.bench.pictures import box_of, orient, volume
from medvista_ray.tasks.bench.subjects import BY_ID, Subject, subjects
from medvista_ray.types import AnswerKind, Split

RANGE_MM = (12.0, 90.0)
TOLERANCE = 0.15
MIN_AREA_PX = 90
NUM_BINS = 6
QUESTIONS = (
    "How long is the structure in box {box}, in mm?",
    "Give the long axis in mm of the structure in {box}.",
    "What is the largest diameter, in mm, of the lesion or organ inside {box}?",
)


@lru_cache(maxsize=8)
def structures(name: str) -> list[tuple[int, int, float]]:
    """All (slice, label, length in mm) of one volume whose largest component is compact enough to be one object."""
    scan = volume(name)
    assert scan.labels is not None
    found: list[tuple[int, int, float]] = []
    for index in range(scan.labels.shape[0]):
        plane = np.asarray(scan.labels[index])
        for value in np.unique(plane[plane > 0]):
            length = _length_mm(plane == value, scan.spacing_mm[1])
            if length is not None and RANGE_MM[0] <= length <= RANGE_MM[1]:
                found.append((index, int(value), length))
    return found


def _length_mm(mask: NDArray[np.bool_], spacing: float) -> float | None:
    """Longest distance between two points of a mask that is one compact piece; None if it is not."""
    regions = regionprops(label(mask))
    if len(regions) != 1 or regions[0].area < MIN_AREA_PX or regions[0].solidity < 0.85:
        return None
    return float(regions[0].feret_diameter_max) * spacing


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` cycles through logarithmic length bins."""
    able = [s for s in subjects(split, volume=True) if volume(s.id).labels is not None]
    if not able:
        return None
    by_bin = _by_length(tuple(s.id for s in able))
    wanted = sorted(by_bin)[index % len(by_bin)]
    name, number, value, length = pick(rng, by_bin[wanted])
    return _ask(rng, BY_ID[name], number, value, length)


@lru_cache(maxsize=4)
def _by_length(names: tuple[str, ...]) -> dict[int, list[tuple[str, int, int, float]]]:
    """Structures of several volumes by logarithmic length bin."""
    edges = np.exp(np.linspace(*np.log(RANGE_MM), NUM_BINS + 1))
    bins: dict[int, list[tuple[str, int, int, float]]] = {}
    for name in names:
        for number, value, length in structures(name):
            place = int(np.clip(np.searchsorted(edges, length, side="right") - 1, 0, NUM_BINS - 1))
            bins.setdefault(place, []).append((name, number, value, length))
    return bins


def _ask(rng: Generator, subject: Subject, index: int, value: int, length: float) -> Draft | None:
    scan = volume(subject.id)
    mask = np.asarray(scan.labels[index]) == value  # pyright: ignore[reportOptionalSubscript]
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    extent = max(rows[-1] - rows[0], cols[-1] - cols[0]) + 1
    side = int(min(extent / log_uniform(rng, 0.15, 0.5), min(mask.shape)))
    if side < 48 or extent > 0.6 * side:
        return None
    corner = [_corner(rng, edge, side, length_px) for edge, length_px in zip((rows, cols), mask.shape, strict=True)]
    recipe = {
        "plate": subject.id,
        "slice": index,
        "crop": [*corner, side, side],
        "flip": [bool(rng.integers(2)), bool(rng.integers(2))],
    }
    recipe["window"] = [-160.0, 240.0] if subject.modality == "CT" else draw_window(rng, subject, recipe)
    if subject.id.startswith("lung"):
        recipe["window"] = [-1000.0, 400.0]
    gold = box_of(orient(mask, recipe))
    box = loosen(rng, gold, 0.12, 0.3)
    return Draft(
        subject=subject.id,
        modality=subject.modality,
        question=pick(rng, QUESTIONS).format(box=written(box)),
        answer=f"{length:.0f}",
        kind=AnswerKind.NUMBER,
        tolerance=TOLERANCE,
        chance=float(np.log((1 + TOLERANCE) / (1 - TOLERANCE)) / np.log(RANGE_MM[1] / RANGE_MM[0])),
        recipe=recipe,
        regions=(gold, box),
        plan=("segment_medical", "measure"),
    )


def _corner(rng: Generator, edge: NDArray[np.intp], side: int, length: int) -> int:
    """First row (or column) of a crop of that side that holds the object with a margin."""
    margin = max(2, (edge[-1] - edge[0]) // 3)
    low = max(0, min(int(edge[-1]) + margin - side + 1, length - side))
    high = min(length - side, max(int(edge[0]) - margin, low))
    return int(rng.integers(low, high + 1))
