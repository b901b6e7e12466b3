"""Episodes as the rectangular tensors that one forward takes.

Owns micro-batching. Invariants: an episode is never cut; padding is on the right (so that causal attention needs no mask);
each distinct picture of a micro-batch is there once; placeholders and picture features match one to one. Called by trainers.

Shapes: E episodes, B rows of one micro-batch, L padded length, P placeholders' pictures, D distinct pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from medvista_ray.errors import InvariantError
from medvista_ray.models.policy import Picture, PolicyInputs
from medvista_ray.types import Episode


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

    def to(self, device: torch.device | str) -> Batch:
        """The same on `device`."""
        return Batch(
            token_ids=self.token_ids.to(device),
            loss_mask=self.loss_mask.to(device),
            behaviour=self.behaviour.to(device),
            pixels={name: tensor.to(device) for name, tensor in self.pixels.items()},
            image_index=self.image_index.to(device),
        )


def build_batch(episodes: Sequence[Episode], policy: PolicyInputs) -> Batch:
    """Pad `episodes` to one rectangle.

    Raises InvariantError, naming the task, if an episode's arrays disagree or its placeholders do not match its pictures.
    """
    for episode in episodes:
        _check(episode, policy)
    length = max(len(episode.token_ids) for episode in episodes)
    distinct, index = share_images([image for episode in episodes for image in episode.images])
    return Batch(
        token_ids=_pad([e.token_ids.astype(np.int64) for e in episodes], length, policy.padding_id),
        loss_mask=_pad([e.loss_mask.astype(np.bool_) for e in episodes], length, False),
        behaviour=_pad([e.logprobs.astype(np.float32) for e in episodes], length, 0.0),
        pixels=policy.pixel_inputs(distinct) if distinct else {},
        image_index=torch.tensor(index, dtype=torch.int64),
    )


def split_microbatches(
    episodes: Sequence[Episode], tokens_per_microbatch: int, max_images: int | None = None
) -> list[list[int]]:
    """Indices of `episodes`, longest first, in micro-batches of at most `tokens_per_microbatch` padded tokens.

    `max_images` bounds the distinct pictures of one micro-batch (None: a bound that grows with the tokens). An episode
    that alone exceeds a bound gets a micro-batch of its own. Deterministic: ties keep their order.
    """
    bound = max_images or max(1, tokens_per_microbatch // 64)
    batches: list[list[int]] = []
    longest, pictures = 0, set[tuple[tuple[int, ...], bytes]]()
    for index in sorted(range(len(episodes)), key=lambda i: -len(episodes[i].token_ids)):
        keys = {_content(image) for image in episodes[index].images}
        fits = batches and longest * (len(batches[-1]) + 1) <= tokens_per_microbatch and len(pictures | keys) <= bound
        if fits:
            batches[-1].append(index)
            pictures |= keys
        else:
            batches.append([index])
            longest, pictures = len(episodes[index].token_ids), keys
    return batches


def share_images(images: Sequence[Picture]) -> tuple[list[Picture], list[int]]:
    """The distinct pictures by content, in order of first appearance, and for each picture its place among them."""
    places: dict[tuple[tuple[int, ...], bytes], int] = {}
    distinct: list[Picture] = []
    index: list[int] = []
    for image in images:
        place = places.setdefault(_content(image), len(distinct))
        if place == len(distinct):
            distinct.append(image)
        index.append(place)
    return distinct, index


def _content(image: Picture) -> tuple[tuple[int, ...], bytes]:
    return image.shape, image.tobytes()


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
