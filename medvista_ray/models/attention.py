"""Attention over packed episodes (see `models.packing`), as an attention function of transformers.

Invariant: each token sees its episode's earlier tokens and itself, nothing else; the result equals causal attention
over each episode alone. In place only inside `attention_of(text_model, PACKED)`, so that any other forward of the same
model is untouched.

Shapes: T packed tokens, P tokens of all episodes, Q query heads, K key heads, D head width, L tokens of one episode, N of
them new (the last ones).
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

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
    episode = _episode if query.device.type == "cpu" else _episode_fused
    longest = max(packing.lengths)
    mask = value.new_full((longest, longest), float("-inf")).triu(1)
    # Rotary positions leave fp32 under autocast. Converted here at once, not once per episode; keys after they are laid out,
    # so that the gradients of a history that episodes share are still added up in fp32.
    queries = query[0].transpose(0, 1).to(value.dtype).split(packing.num_new)
    laid_out = (x[0].transpose(0, 1).index_select(0, packing.path) for x in (key, value))
    keys, values = (x.to(value.dtype).split(packing.lengths) for x in laid_out)
    parts = [
        episode(new, own_keys, own_values, mask[len(own_keys) - len(new) : len(own_keys), : len(own_keys)], scaling)
        for new, own_keys, own_values in zip(queries, keys, values, strict=True)
        if len(new)
    ]
    return torch.cat(parts)[None], None


def _episode(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float) -> torch.Tensor:
    """query [N, Q, D], key and value [L, K, D], mask [N, L] (0 or minus infinity) -> [N, Q, D].

    Matrix products by hand: on a CPU, at a few hundred tokens, the fused kernel takes two to five times as long.
    """
    num_heads = key.shape[1]
    repeats = query.shape[1] // num_heads
    grouped = query.unflatten(1, (num_heads, repeats)).permute(1, 2, 0, 3).flatten(1, 2)
    masks = mask.repeat(repeats, 1).expand(num_heads, -1, -1)
    scores = torch.baddbmm(masks, grouped, key.permute(1, 2, 0), alpha=scaling)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(value.dtype)
    outputs = torch.bmm(weights, value.transpose(0, 1))
    return outputs.unflatten(1, (repeats, -1)).permute(2, 0, 1, 3).flatten(1, 2)


def _episode_fused(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, scaling: float
) -> torch.Tensor:
    """The same through the fused kernel, which never holds the scores: for long episodes on an accelerator."""
    repeats = query.shape[1] // key.shape[1]
    keys, values = (x.repeat_interleave(repeats, dim=1).transpose(0, 1)[None] for x in (key, value))
    queries = query.transpose(0, 1)[None]
    if len(query) == len(key):
        return scaled_dot_product_attention(queries, keys, values, is_causal=True, scale=scaling)[0].transpose(0, 1)
    return scaled_dot_product_attention(queries, keys, values, attn_mask=mask, scale=scaling)[0].transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
