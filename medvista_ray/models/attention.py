"""Attention over packed episodes (see `models.packing`), as an attention function of transformers.

Invariant: each token sees its episode's earlier tokens and itself, nothing else; the result equals causal attention
over each episode alone. In place only inside `attention_of(text_model, PACKED)`, so that any other forward of the same
model is untouched.

Shapes: T packed tokens, P tokens of all episodes, Q query heads, K key heads, D head width, L tokens of one episode, N of
them new (the last ones).
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medvista_ray.models.attention_blocks import blocks_of
from medvista_ray.models.packing import Packing

PACKED = "medvista_packed"
"""Its name; the forward then takes one packed row and the keyword argument `packing`."""


@contextmanager
def attention_of(module: Any, name: str) -> Generator[None]:
    """Within it, `module` (a text model or a vision tower) uses the attention function `name`."""
    config = module.config
    before = config._attn_implementation
    config._attn_implementation = name
    try:
        yield
    finally:
        config._attn_implementation = before


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    packing: Packing,
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """query [1, Q, T, D], key and value [1, K, T, D] -> [1, T, Q, D].

    The mask given is not used: `packing` says it all. An episode's new tokens ask, all its tokens answer.
    """
    attended = _in_blocks if query.device.type == "cpu" else _one_by_one
    return attended(query[0].transpose(0, 1), key[0].transpose(0, 1), value[0].transpose(0, 1), packing, scaling)[None], None


def _in_blocks(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float) -> torch.Tensor:
    """query [T, Q, D], key and value [T, K, D] -> [T, Q, D].

    Matrix products by hand: on a CPU, at a few hundred tokens, the fused kernel takes two to five times as long.
    """
    num_heads, width = query.shape[1:]
    num_keys, dtype = key.shape[1], value.dtype
    blocks = blocks_of(packing, num_heads, num_keys, dtype)
    # Rotary positions leave fp32 under autocast. Keys are converted after they are laid out, so that the gradients of a
    # history that episodes share are still added up in fp32.
    queries = (query * scaling).to(dtype).reshape(-1, width)
    asking = _laid_out(queries, blocks.queries)
    keys, values = (_laid_out(x.reshape(-1, width), blocks.keys, dtype) for x in (key, value))
    parts: list[torch.Tensor] = []
    for own, own_keys, own_values, mask in zip(asking, keys, values, blocks.masks, strict=True):
        scores = torch.baddbmm(mask, own, own_keys.transpose(1, 2))
        weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(dtype)
        parts.append(torch.bmm(weights, own_values).view(-1, width))
    return torch.cat(parts).index_select(0, blocks.answers).view(query.shape)


def _laid_out(rows: torch.Tensor, places: Sequence[torch.Tensor], dtype: torch.dtype | None = None) -> list[torch.Tensor]:
    """Of `rows` [*, D] those at each of `places` [*, *], as [*, *, D] of `dtype`; one gather for all of them."""
    taken = rows.index_select(0, torch.cat([index.flatten() for index in places])).to(dtype or rows.dtype)
    parts = taken.split([index.numel() for index in places])
    return [part.view(*index.shape, -1) for part, index in zip(parts, places, strict=True)]


def _one_by_one(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, packing: Packing, scaling: float) -> torch.Tensor:
    """The same, episode by episode."""
    longest = max(packing.lengths)
    mask = value.new_full((longest, longest), float("-inf")).triu(1)
    queries = query.to(value.dtype).split(packing.num_new)
    keys, values = (x.index_select(0, packing.path).to(value.dtype).split(packing.lengths) for x in (key, value))
    parts = [
        _fused(new, own_keys, own_values, mask[len(own_keys) - len(new) : len(own_keys), : len(own_keys)], scaling)
        for new, own_keys, own_values in zip(queries, keys, values, strict=True)
        if len(new)
    ]
    return torch.cat(parts)


def _fused(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """query [N, Q, D], key and value [L, K, D], mask [N, L] (0 or minus infinity) -> [N, Q, D].

    Through the fused kernel, which never holds the scores: for long episodes on an accelerator.
    """
    repeats = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1).transpose(0, 1)[None] for x in (key, value))
    queries = query.transpose(0, 1)[None]
    if len(query) == len(key):
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)[0].transpose(0, 1)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)[0].transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
