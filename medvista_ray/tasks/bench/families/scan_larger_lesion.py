"""In which of two slices of a scan is a structure larger? Show each slice, outline the structure there, compare the areas.

One box, loose around both outlines, is given for both slices, so that it does not tell. The truth is an expert's mask (or,
on the training CT, an organ mask); the larger area is at least twice the other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import log_uniform, loosen, pick, written
from medvista_ray.tasks.bench.families.lesion_size import Structure, crop_start, structures
from medvista_ray.tasks.bench.pictures import volume
from medvista_ray.tasks.bench.scans import block, introduced, scan_window
from medvista_ray.tasks.bench.subjects import BY_ID, Subject, wide_subjects
from medvista_ray.types import AnswerKind, Box, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

RATIO = 2.0
MAX_BESIDE = 6
"""Slices that the scan goes on above and below the two."""
NUM_SCANS = {Split.TRAIN: 48, Split.VALIDATION: 4, Split.TEST: 24}
"""Distinct scans per split: each slice in question is encoded once by the segmenter."""
QUESTIONS = (
    "{scan} In which slice is the structure in box {box} larger, {first} or {second}?",
    "{scan} Outline the lesion or organ in {box} in slices {first} and {second}: in which one is its area larger?",
)


@dataclass(frozen=True)
class Pair:
    """A scan in which one structure is small in one slice and large in another."""

    subject: str
    recipe: dict[str, Any]
    small: int
    large: int
    box: Box
    """Tight around the structure in both slices."""


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` decides whether the first or the second slice is the right one."""
    pairs = pool(split)
    if not pairs:
        return None
    lower_is_large = index // 2 % 2 == 0
    able = [pair for pair in pairs if (pair.large < pair.small) == lower_is_large] or pairs
    pair: Pair = pick(rng, able)
    first, second = (pair.large, pair.small) if index % 2 == 0 else (pair.small, pair.large)
    box = loosen(rng, pair.box, 0.08, 0.18)
    question = pick(rng, QUESTIONS).format(scan=introduced(pair.recipe), box=written(box), first=first, second=second)
    return Draft(
        subject=pair.subject,
        modality=BY_ID[pair.subject].kind,
        question=question,
        answer=str(pair.large),
        kind=AnswerKind.CHOICE,
        choices=(str(first), str(second)),
        chance=0.5,
        recipe=pair.recipe,
        regions=(pair.box, box),
        plan=("enhance", "segment_medical", "enhance", "segment_medical", "measure"),
    )


@lru_cache(maxsize=3)
def pool(split: Split) -> list[Pair]:
    """The split's fixed scans."""
    rng = np.random.default_rng([37, list(Split).index(split)])
    able = [s for s in wide_subjects(split, volume=True) if _stacks(s.id)]
    found: list[Pair] = []
    while able and len(found) < NUM_SCANS[split]:
        subject: Subject = pick(rng, able)
        stack = pick(rng, _stacks(subject.id))
        one, other = (stack[int(i)] for i in rng.choice(len(stack), 2, replace=False))
        if _area(one) * RATIO <= _area(other) and abs(one.slice - other.slice) <= MAX_BESIDE * 2:
            found.append(_pair(rng, subject, one, other))
    return found


@lru_cache(maxsize=8)
def _stacks(name: str) -> list[list[Structure]]:
    """Objects of one volume, slice by slice, that grow or shrink by RATIO."""
    by_label: dict[int, list[Structure]] = {}
    for structure in structures(name):
        by_label.setdefault(structure.label, []).append(structure)
    return [stack for stack in by_label.values() if max(map(_area, stack)) >= RATIO * min(map(_area, stack))]


@lru_cache(maxsize=4096)
def _area(structure: Structure) -> int:
    labels = volume(structure.subject).labels
    assert labels is not None
    return int((labels[structure.slice, slice(*structure.rows), slice(*structure.cols)] == structure.label).sum())


def _pair(rng: Generator, subject: Subject, small: Structure, large: Structure) -> Pair:
    """A block around both, in which they take a quarter to half of the side."""
    shape = volume(subject.id).values.shape
    edges = [_union(a, b) for a, b in ((small.rows, large.rows), (small.cols, large.cols))]
    extent = max(stop - start for start, stop in edges)
    side = int(np.clip(extent / log_uniform(rng, 0.25, 0.5), 64, min(shape[1:])))
    row, col = (crop_start(rng, edge, side, length) for edge, length in zip(edges, shape[1:], strict=True))
    first = max(0, min(small.slice, large.slice) - int(rng.integers(1, MAX_BESIDE)))
    stop = min(shape[0], max(small.slice, large.slice) + 1 + int(rng.integers(1, MAX_BESIDE)))
    recipe: dict[str, Any] = {"plate": subject.id, "slices": [first, stop], "crop": [row, col, side, side]}
    recipe["window"] = _window(rng, subject, recipe)
    (top, bottom), (left, right) = (
        [1000 * (e - start) / side for e in edge] for edge, start in zip(edges, (row, col), strict=True)
    )
    box = (round(left), round(top), round(right), round(bottom))
    return Pair(subject.id, recipe, small.slice - first, large.slice - first, box)


def _union(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    return min(a[0], b[0]), max(a[1], b[1])


def _window(rng: Generator, subject: Subject, recipe: dict[str, Any]) -> list[float]:
    """In CT that of the lungs for a lung tumour, else soft tissue."""
    if subject.modality != "CT":
        return scan_window(rng, subject, block(recipe))
    return [-1000.0, 400.0] if subject.id.startswith("lung") else [-160.0, 240.0]


def play(hand: BenchExpert) -> Iterator[str]:
    """Outline in both slices, compare the areas."""
    for number, choice in enumerate(hand.task.choices):
        yield hand.call("enhance", image_index=0, slice_index=int(choice))
        yield hand.call("segment_medical", image_index=number + 1, bbox=hand.box(-1))
    yield hand.call("measure", mask_index=0, reference_mask_index=1)
    yield hand.answer(hand.task.choices[0 if "region is larger" in hand.reply else 1])
