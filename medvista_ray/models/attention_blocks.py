"""Packed episodes in blocks of like size, so that a CPU attends within a whole block by one batched product.

Products of a few dozen rows cost a CPU as much for the call as for the arithmetic. In a block all episodes end at the right
edge, their new tokens and their keys alike, so that what a token may see is one triangle less the padding at the left.
Invariant: each new token of each episode stands in exactly one block; padding is seen by none of them. Called by
`models.attention`.

Shapes: T packed tokens, Q query heads, K key heads, R = Q / K, E episodes of one block, N most new tokens and L longest
length among them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from weakref import WeakKeyDictionary

import torch

from medvista_ray.models.packing import Packing

PADDING_PER_PRODUCT = 1500
"""Scores of padding (per head) that are worth one product less: about their time on a CPU with and without bf16."""


@dataclass(frozen=True)
class Blocks:
    """Where every row of a layer's queries, keys and values stands, block by block."""

    queries: tuple[torch.Tensor, ...]
    """Of each block [E * K, R * N] int64: row (token * Q + head) of the queries."""
    keys: tuple[torch.Tensor, ...]
    """Of each block [E * K, L] int64: row (token * K + head) of the keys and values."""
    masks: tuple[torch.Tensor, ...]
    """Of each block [E * K, R * N, L]: 0, or for what is not seen a number that leaves nothing of it."""
    answers: torch.Tensor
    """[T * Q] int64: place among all blocks' queries, laid end to end, of each row of the queries."""


def blocks_of(packing: Packing, num_heads: int, num_keys: int, dtype: torch.dtype) -> Blocks:
    """The blocks of `packing` for a layer with so many query and key heads, with masks of `dtype`; made once."""
    shape = (num_heads, num_keys, dtype)
    made = _MADE.setdefault(packing, {})
    if shape not in made:
        made[shape] = _make(packing, *shape)
    return made[shape]


_MADE: WeakKeyDictionary[Packing, dict[tuple[int, int, torch.dtype], Blocks]] = WeakKeyDictionary()


def alike(num_new: Sequence[int], lengths: Sequence[int]) -> list[list[int]]:
    """Episodes with new tokens, each block's with the most first, so that no block has too much padding."""
    blocks: list[list[int]] = []
    area = longest = 0
    for index in sorted((i for i, n in enumerate(num_new) if n), key=lambda i: (-num_new[i], -lengths[i])):
        own = num_new[index] * lengths[index]
        if blocks:
            width = max(longest, lengths[index])
            padding = num_new[blocks[-1][0]] * width * (len(blocks[-1]) + 1) - area - own
            if padding <= PADDING_PER_PRODUCT * len(blocks[-1]):
                blocks[-1].append(index)
                area, longest = area + own, width
                continue
        blocks.append([index])
        area, longest = own, lengths[index]
    return blocks


def _make(packing: Packing, num_heads: int, num_keys: int, dtype: torch.dtype) -> Blocks:
    device = packing.path.device
    news = torch.arange(len(packing.source), device=device).split(packing.num_new)
    paths = packing.path.split(packing.lengths)
    # Of each token the row of each head, in the order of the heads.
    head = torch.arange(num_heads, device=device)[:, None]
    # Not minus infinity, neither here nor in the softmax's fp32: a padded query sees nothing at all, and must not become NaN.
    hidden = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min) / 2
    queries: list[torch.Tensor] = []
    keys: list[torch.Tensor] = []
    masks: list[torch.Tensor] = []
    answers = torch.empty(len(packing.source), num_heads, dtype=torch.int64, device=device)
    members = alike(packing.num_new, packing.lengths)
    sizes = [(len(block), packing.num_new[block[0]], max(packing.lengths[i] for i in block)) for block in members]
    starts = accumulate((count * num_heads * most for count, most, _ in sizes), initial=0)
    for block, (count, most, longest), start in zip(members, sizes, starts, strict=False):
        asking = torch.zeros(count, num_heads, most, dtype=torch.int64, device=device)
        answering = torch.zeros(count, num_keys, longest, dtype=torch.int64, device=device)
        mask = torch.full((count, most, longest), hidden, dtype=dtype, device=device).triu(1 + longest - most)
        place = start + torch.arange(asking.numel(), device=device).view(asking.shape)
        for row, index in enumerate(block):
            new, length = packing.num_new[index], packing.lengths[index]
            asking[row, :, most - new :] = news[index] * num_heads + head
            answering[row, :, longest - length :] = paths[index] * num_keys + head[:num_keys]
            mask[row, :, : longest - length] = hidden
            answers[news[index]] = place[row, :, most - new :].t()
        queries.append(asking.view(count * num_keys, -1))
        keys.append(answering.view(count * num_keys, -1))
        masks.append(mask[:, None].expand(-1, num_heads, -1, -1).reshape(count * num_keys, -1, longest))
    return Blocks(tuple(queries), tuple(keys), tuple(masks), answers.flatten())
