"""Episodes as the tensors that one forward takes.

Owns micro-batching. Invariants: an episode is never cut; episodes of one question stay together where they fit, so that
what they begin with is computed once; each distinct picture of a micro-batch is there once; placeholders and picture
features match one to one. Called by trainers.

Shapes: E episodes, B rows of one micro-batch, L padded length, P pictures in the rows, R pictures in the packed row,
D distinct pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medvista_ray.errors import InvariantError
from medvista_ray.models.packing import Packing, families_of, longest_shared, pack
from medvista_ray.models.policy import Picture, PolicyInputs
from medvista_ray.types import Episode

Content = tuple[tuple[int, ...], bytes]
"""A picture's shape and values."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch."""

    token_ids: torch.Tensor
    """[B, L] int64"""
    loss_mask: torch.Tensor
    """[B, L] bool: sampled by the policy; never at position 0 nor in padding."""
    behaviour: torch.Tensor
    """[B, L] float32: the engine's log-probabilities, 0 where not sampled."""
    pixels: dict[str, torch.Tensor]
    """Arguments of `get_image_features` for the D distinct pictures; empty without pictures."""
    image_index: torch.Tensor
    """[P] int64: distinct picture behind each placeholder run, rows first."""
    packing: Packing
    """How the rows are laid end to end for the forward."""
    packed_images: torch.Tensor
    """[R] int64: distinct picture behind each placeholder run of the packed row."""

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`."""
        return Batch(
            token_ids=self.token_ids.to(device),
            loss_mask=self.loss_mask.to(device),
            behaviour=self.behaviour.to(device),
            pixels={name: tensor.to(device) for name, tensor in self.pixels.items()},
            image_index=self.image_index.to(device),
            packing=self.packing.to(device),
            packed_images=self.packed_images.to(device),
        )


def build_batch(episodes: Sequence[Episode], policy: PolicyInputs) -> Batch:
    """Pad `episodes` to one rectangle.

    Raises InvariantError, naming the task, if an episode's arrays disagree or its placeholders do not match its
    pictures.
    """
    for episode in episodes:
        _check(episode, policy)
    length = max(len(episode.token_ids) for episode in episodes)
    distinct, index = share_images([image for episode in episodes for image in episode.images])
    keys = _keys(episodes, index, policy)
    packing = pack(keys)
    return Batch(
        token_ids=_pad([e.token_ids.astype(np.int64) for e in episodes], length, policy.padding_id),
        loss_mask=_pad([e.loss_mask.astype(np.bool_) for e in episodes], length, False),
        behaviour=_pad([e.logprobs.astype(np.float32) for e in episodes], length, 0.0),
        pixels=policy.pixel_inputs(distinct) if distinct else {},
        image_index=torch.tensor(index, dtype=torch.int64),
        packing=packing,
        packed_images=_packed_images(keys, packing, policy, distinct),
    )


def split_microbatches(
    episodes: Sequence[Episode], policy: PolicyInputs, tokens_per_microbatch: int, max_images: int | None = None
) -> list[list[int]]:
    """Indices of `episodes` in micro-batches of at most `tokens_per_microbatch` packed tokens: what episodes of one
    micro-batch begin with in common counts once, as it is computed once.

    Episodes of one question stay together where they fit, longest first. `max_images` bounds the distinct pictures of
    one micro-batch (None: a bound that grows with the tokens). An episode that alone exceeds a bound gets a
    micro-batch of its own. Deterministic: ties keep their order. Raises InvariantError as `build_batch` does.
    """
    for episode in episodes:
        _check(episode, policy)
    images = [image for episode in episodes for image in episode.images]
    keys = _keys(episodes, share_images(images)[1], policy)
    bounds = (tokens_per_microbatch, max_images or max(1, tokens_per_microbatch // 64))
    drafts = [_Draft(keys, bounds)]
    for family in families_of([episode.task.id for episode in episodes]):
        rows = sorted(family, key=lambda index: -len(keys[index]))
        if drafts[-1].add_all(rows):
            continue
        drafts += [_Draft(keys, bounds)]
        if not drafts[-1].add_all(rows):
            drafts += _cut(rows, drafts.pop())
    return [draft.rows for draft in drafts if draft.rows]


class _Draft:
    """A micro-batch in the making, within `bounds` of (packed tokens, distinct pictures)."""

    def __init__(self, keys: Sequence[np.ndarray], bounds: tuple[int, int]) -> None:
        self.rows: list[int] = []
        self._keys, self._bounds, self._size, self._pictures = keys, bounds, 0, frozenset[int]()

    def empty(self) -> _Draft:
        """Another of the same episodes and bounds."""
        return _Draft(self._keys, self._bounds)

    def add_all(self, rows: Sequence[int]) -> bool:
        """Add all `rows`, or none if they do not fit."""
        num_rows, size, pictures = len(self.rows), self._size, self._pictures
        if all(self.add(row) for row in rows):
            return True
        del self.rows[num_rows:]
        self._size, self._pictures = size, pictures
        return False

    def add(self, row: int) -> bool:
        """Add one row unless it does not fit; the first one always does."""
        key = self._keys[row]
        size = self._size + len(key) - longest_shared([self._keys[index] for index in self.rows], key)[1]
        pictures = self._pictures.union(np.unique(key[key < 0]).tolist())
        if self.rows and (size > self._bounds[0] or len(pictures) > self._bounds[1]):
            return False
        self.rows.append(row)
        self._size, self._pictures = size, pictures
        return True


def _cut(rows: Sequence[int], draft: _Draft) -> list[_Draft]:
    """As many micro-batches as a family that fits into none needs; `draft` is an empty one."""
    drafts = [draft]
    for row in rows:
        if not drafts[-1].add(row):
            drafts.append(draft.empty())
            drafts[-1].add(row)
    return drafts


def share_images(images: Sequence[Picture]) -> tuple[list[Picture], list[int]]:
    """The distinct pictures by content, in order of first appearance, and for each picture its place among them."""
    places: dict[Content, int] = {}
    distinct: list[Picture] = []
    index: list[int] = []
    for image in images:
        place = places.setdefault(_content(image), len(distinct))
        if place == len(distinct):
            distinct.append(image)
        index.append(place)
    return distinct, index


def _content(image: Picture) -> Content:
    return image.shape, image.tobytes()


def _keys(episodes: Sequence[Episode], index: Sequence[int], policy: PolicyInputs) -> list[np.ndarray]:
    """Token ids of each episode, with -1 - (distinct picture) in place of a picture's tokens."""
    shown = iter(index)
    rows: list[np.ndarray] = []
    for episode in episodes:
        row = episode.token_ids.astype(np.int64)
        runs = [(-1 - next(shown), policy.num_image_tokens(image)) for image in episode.images]
        row[row == policy.image_token_id] = np.repeat([run[0] for run in runs], [run[1] for run in runs])
        rows.append(row)
    return rows


def _packed_images(
    keys: Sequence[np.ndarray], packing: Packing, policy: PolicyInputs, distinct: Sequence[Picture]
) -> torch.Tensor:
    """[R] distinct picture of each run of picture tokens in the packed row."""
    width = max(len(row) for row in keys)
    flat = np.zeros(len(keys) * width, dtype=np.int64)
    for place, row in enumerate(keys):
        flat[place * width : place * width + len(row)] = row
    tokens = flat[packing.source.numpy()]
    names = -1 - tokens[tokens < 0]
    runs: list[int] = []
    start = 0
    while start < len(names):
        runs.append(int(names[start]))
        start += policy.num_image_tokens(distinct[runs[-1]])
    return torch.tensor(runs, dtype=torch.int64)


def _pad(rows: Sequence[np.ndarray], length: int, fill: float) -> torch.Tensor:
    padded = np.full((len(rows), length), fill, dtype=rows[0].dtype)
    for target, row in zip(padded, rows, strict=True):
        target[: len(row)] = row
    return torch.from_numpy(padded)


def _check(episode: Episode, policy: PolicyInputs) -> None:
    name, length = episode.task.id, len(episode.token_ids)
    if len(episode.loss_mask) != length or len(episode.logprobs) != length:
        raise InvariantError(f"task {name!r}: {length} tokens, {len(episode.loss_mask)} mask values")
    if length and episode.loss_mask[0]:
        raise InvariantError(f"task {name!r}: the first token is marked as sampled")
    num_placeholders = int((episode.token_ids == policy.image_token_id).sum())
    num_features = sum(policy.num_image_tokens(image) for image in episode.images)
    if num_placeholders != num_features:
        raise InvariantError(f"task {name!r}: {num_placeholders} image tokens, {num_features} picture features")
    if bool((episode.token_ids[episode.loss_mask] == policy.image_token_id).any()):
        raise InvariantError(f"task {name!r}: an image token is marked as sampled")
