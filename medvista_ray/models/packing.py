"""Episodes laid end to end without padding, with what they begin with in common laid down once.

Episodes share the system prompt; those of one question also its text and picture, and often their first turns and what the
tools replied. A causal model computes the same states for equal histories, so each distinct history is computed once
(the episodes form a prefix tree) and gradients add up by themselves. Invariant: every token of every episode maps to a packed
token with the same history; no two packed tokens have the same one. Called by `models.batching`.

Shapes: B episodes, L longest, T packed tokens, P tokens of all episodes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

Keys = NDArray[np.int64]
"""[length] what stands at each place: a token id.

Or for a picture's tokens a negative number that names the picture.
"""


@dataclass(frozen=True, eq=False)
class Packing:
    """The layout of one micro-batch: the new tokens of the first episode, then those of the second, and so on.

    Equal to itself only, so that what is derived from it can be kept beside it.
    """

    num_new: tuple[int, ...]
    """[B] tokens of each episode whose history no episode before it has."""
    lengths: tuple[int, ...]
    """[B] tokens of each episode."""
    path: torch.Tensor
    """[P] packed token of each token of each episode, one episode behind the other."""
    source: torch.Tensor
    """[T] flat place (row * L + column) in the padded rectangle of each packed token."""
    place: torch.Tensor
    """[B, L] packed token of each place; padding maps to 0."""

    def to(self, device: torch.device | str) -> Packing:
        """The same on `device`."""
        tensors = (self.path.to(device), self.source.to(device), self.place.to(device))
        return Packing(self.num_new, self.lengths, *tensors)


def pack(rows: Sequence[Keys], families: Sequence[Sequence[int]] | None = None) -> Packing:
    """Lay out `rows`. Rows of different `families` share nothing (None: all are of one family)."""
    family = np.zeros(len(rows), dtype=np.int64)
    for number, members in enumerate(families or ()):
        family[list(members)] = number
    width = max(len(row) for row in rows)
    place = np.zeros((len(rows), width), dtype=np.int64)
    source: list[NDArray[np.int64]] = []
    num_new: list[int] = []
    num_packed = 0
    for index, row in enumerate(rows):
        before = np.flatnonzero(family[:index] == family[index])
        like, shared = longest_shared([rows[other] for other in before], row)
        if shared:
            place[index, :shared] = place[before[like], :shared]
        num_new.append(len(row) - shared)
        place[index, shared : len(row)] = num_packed + np.arange(num_new[-1])
        source.append(index * width + np.arange(shared, len(row)))
        num_packed += num_new[-1]
    path = np.concatenate([places[: len(row)] for places, row in zip(place, rows, strict=True)])
    tensors = map(torch.from_numpy, (path, np.concatenate(source), place))
    return Packing(tuple(num_new), tuple(len(row) for row in rows), *tensors)


def longest_shared(before: Sequence[Keys], row: Keys) -> tuple[int, int]:
    """Which of the rows `before` begins most like `row`, and for how many places; never inside a picture."""
    like, length = 0, 0
    for number, other in enumerate(before):
        # Most rows branch off no later than the best one so far: one comparison tells.
        if length < min(len(other), len(row)) and (other[: length + 1] == row[: length + 1]).all():
            like, length = number, _common_length(other, row)
    while 0 < length < len(row) and row[length] < 0 and row[length - 1] == row[length]:
        length -= 1
    return like, length


def _common_length(one: Keys, other: Keys) -> int:
    length = min(len(one), len(other))
    same = one[:length] == other[:length]
    return length if same.all() else int(same.argmin())


def families_of(names: Sequence[str]) -> list[list[int]]:
    """Rows that share more than the system prompt: those of one question; if no two are of one question, all rows."""
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        by_name.setdefault(name, []).append(index)
    return list(by_name.values()) if len(by_name) < len(names) else [list(range(len(names)))]
