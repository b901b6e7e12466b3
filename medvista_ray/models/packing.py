"""Episodes laid end to end without padding, with the tokens they begin with in common laid down once.

Episodes of one question share the system prompt, the question and its picture: often half of their tokens. A causal
model computes the same states for them in every episode, so they are computed once and their gradients add up by
themselves. Invariant: every token of every episode maps to a packed token with the same history. Called by
`models.batching`.

Shapes: B episodes, L longest, T packed tokens, C clusters (episodes with a common prefix), n episodes of one cluster,
S longest suffix of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

Keys = NDArray[np.int64]
"""[length] what stands at each place: a token id.

Or for a picture's tokens a negative number that names the picture.
"""


@dataclass(frozen=True)
class Cluster:
    """Where one cluster's tokens are: its prefix, then the suffixes of its episodes one after the other."""

    start: int
    """First packed token of the prefix."""
    prefix: int
    """Tokens of the prefix; 0 for an episode on its own."""
    gather: torch.Tensor
    """[n * S] packed token at each place of the padded suffixes; padding repeats the suffix's last token."""
    scatter: torch.Tensor
    """[suffix tokens] place in the padded suffixes of each packed suffix token, in packed order."""
    mask: torch.Tensor
    """[S, prefix + S] bool: what a suffix token sees."""

    @property
    def num_tokens(self) -> int:
        """Packed tokens."""
        return self.prefix + len(self.scatter)

    @property
    def is_dense(self) -> bool:
        """Whether all suffixes are equally long, so that nothing is padded."""
        return len(self.gather) == len(self.scatter)

    def to(self, device: torch.device | str) -> Cluster:
        """The same on `device`."""
        tensors = {name: getattr(self, name).to(device) for name in ("gather", "scatter", "mask")}
        return replace(self, **tensors)


@dataclass(frozen=True)
class Packing:
    """The layout of one micro-batch."""

    clusters: tuple[Cluster, ...]
    source: torch.Tensor
    """[T] flat place (row * L + column) in the padded rectangle of each packed token."""
    place: torch.Tensor
    """[B, L] packed token of each place; padding maps to 0."""

    def to(self, device: torch.device | str) -> Packing:
        """The same on `device`."""
        clusters = tuple(cluster.to(device) for cluster in self.clusters)
        return Packing(clusters, self.source.to(device), self.place.to(device))


def pack(rows: Sequence[Keys], families: Sequence[Sequence[int]]) -> Packing:
    """Lay out `rows`; each of `families` lists rows that may share a prefix, and every row is in one family."""
    width = max(len(row) for row in rows)
    place = np.zeros((len(rows), width), dtype=np.int64)
    source: list[NDArray[np.int64]] = []
    clusters: list[Cluster] = []
    start = 0
    for family in families:
        prefix = common_prefix([rows[index] for index in family]) if len(family) > 1 else 0
        source.append(family[0] * width + np.arange(prefix))
        place[list(family), :prefix] = start + np.arange(prefix)
        first = start + prefix
        for index in family:
            columns = np.arange(prefix, len(rows[index]))
            source.append(index * width + columns)
            place[index, columns] = first + columns - prefix
            first += len(columns)
        clusters.append(_cluster(start, prefix, [len(rows[index]) - prefix for index in family]))
        start = first
    return Packing(tuple(clusters), torch.from_numpy(np.concatenate(source)), torch.from_numpy(place))


def common_prefix(rows: Sequence[Keys]) -> int:
    """How many places all `rows` begin with in common, at least one less than the shortest, never inside a picture."""
    length = min(len(row) for row in rows) - 1
    head = np.stack([row[: length + 1] for row in rows])
    differs = (head != head[0]).any(axis=0)
    length = min(length, int(differs.argmax())) if differs.any() else length
    first = rows[0]
    while length > 0 and first[length - 1] < 0 and first[length - 1] == first[length]:
        length -= 1
    return length


def families_of(names: Sequence[str]) -> list[list[int]]:
    """Rows that may share a prefix: those of one question; if no two rows are of one question, all rows."""
    by_name: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        by_name.setdefault(name, []).append(index)
    return list(by_name.values()) if len(by_name) < len(names) else [list(range(len(names)))]


def _cluster(start: int, prefix: int, suffixes: Sequence[int]) -> Cluster:
    longest = max(suffixes)
    first = start + prefix + np.concatenate([[0], np.cumsum(suffixes)[:-1]])
    columns = np.minimum(np.arange(longest)[None, :], np.array(suffixes)[:, None] - 1)
    scatter = [row * longest + np.arange(length) for row, length in enumerate(suffixes)]
    return Cluster(
        start=start,
        prefix=prefix,
        gather=torch.from_numpy((first[:, None] + columns).reshape(-1)),
        scatter=torch.from_numpy(np.concatenate(scatter)),
        mask=torch.ones(longest, prefix + longest, dtype=torch.bool).tril(prefix),
    )
