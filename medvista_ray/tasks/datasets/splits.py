"""Which split a published question is used in.

Invariant: with "clean" and "case" no case is in two splits, whatever was published, and where a case goes depends on its
name and the pin alone: not on the run's seed, on the other cases, or on the order of files. Called by `Dataset`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from medvista_ray.tasks.datasets.rows import Row
from medvista_ray.types import Split

PIN = "medvista-1"
"""Changing it changes every pinned split."""
NUM_BUCKETS = 10
_RANK = {Split.TEST: 0, Split.VALIDATION: 1, Split.TRAIN: 2}


@dataclass(frozen=True)
class Assignment:
    """Rows by the split they are used in, in published order."""

    rows: dict[Split, list[Row]] = field(default_factory=lambda: {split: [] for split in Split})
    num_dropped: dict[Split, int] = field(default_factory=lambda: dict.fromkeys(Split, 0))
    """Rows of a published split that "clean" leaves out, since their case is in a split nearer to the test."""


def pinned_split(dataset: str, case: str) -> Split:
    """80 % train, 10 % validation, 10 % test, by a hash of the set's and the case's name."""
    bucket = _bucket(dataset, case)
    return Split.TEST if bucket == 0 else Split.VALIDATION if bucket == 1 else Split.TRAIN


def _bucket(dataset: str, case: str) -> int:
    return int(hashlib.sha256(f"{PIN}/{dataset}/{case}".encode()).hexdigest()[:12], 16) % NUM_BUCKETS


def assign(rows: Sequence[Row], dataset: str, mode: str) -> Assignment:
    """Rows by split: mode "clean", "published" or "case".

    A set without a validation split gives a tenth of its training cases to it.
    """
    wanted = [(row, pinned_split(dataset, row.case) if mode == "case" else row.split) for row in rows]
    has_validation = any(split is Split.VALIDATION for _, split in wanted)
    placed = [(row, _place(row, split, dataset, has_validation)) for row, split in wanted]
    home = _homes(placed) if mode != "published" else {}
    result = Assignment()
    for row, split in placed:
        if home.get(row.case, split) is split:
            result.rows[split].append(row)
        else:
            result.num_dropped[split] += 1
    return result


def _place(row: Row, split: Split | None, dataset: str, has_validation: bool) -> Split:
    if split is None:
        return pinned_split(dataset, row.case)
    if split is Split.TRAIN and not has_validation and _bucket(dataset, row.case) == 1:
        return Split.VALIDATION
    return split


def _homes(placed: Sequence[tuple[Row, Split]]) -> Mapping[str, Split]:
    """The one split of each case: the test first, then validation."""
    home: dict[str, Split] = {}
    for row, split in placed:
        if row.case not in home or _RANK[split] < _RANK[home[row.case]]:
            home[row.case] = split
    return home
