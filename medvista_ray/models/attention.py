"""Attention over packed episodes (see `models.packing`), as an attention function of transformers.

Invariant: each token sees its episode's earlier tokens and itself, nothing else; the result equals causal attention
over each episode alone. In place only inside `attention_of(text_model, PACKED)`, so that any other forward of the same
model is untouched.

Shapes: T packed tokens, Q query heads, K key heads, D head width, n episodes of a cluster, S longest suffix, P prefix.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from medvista_ray.models.packing import Cluster, Packing

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

    The mask given is not used: `packing` says it all.
    """
    parts = [part for cluster in packing.clusters for part in _cluster(cluster, query[0], key[0], value[0], scaling)]
    return torch.cat(parts, dim=1).transpose(0, 1)[None], None


def _cluster(cluster: Cluster, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> list[torch.Tensor]:
    """[Q, tokens, D] outputs of the prefix (if there is one) and of the suffixes."""
    if len(cluster.gather) == len(cluster.mask) and not cluster.prefix:
        start, length = cluster.start, cluster.num_tokens
        alone = _causal(_slice(query, start, length), _slice(key, start, length), _slice(value, start, length), scaling)
        return [alone]
    shared_query = _slice(query, cluster.start, cluster.prefix)
    shared_key = _slice(key, cluster.start, cluster.prefix)
    shared_value = _slice(value, cluster.start, cluster.prefix)
    suffix = _suffixes if query.device.type == "cpu" else _suffixes_fused
    padded = suffix(
        _pad(query, cluster), _pad(key, cluster), _pad(value, cluster), shared_key, shared_value, cluster.mask, scaling
    )
    outputs = padded.flatten(1, 2)
    if not cluster.is_dense:
        outputs = outputs.index_select(1, cluster.scatter)
    return [_causal(shared_query, shared_key, shared_value, scaling), outputs] if cluster.prefix else [outputs]


def _pad(tensor: torch.Tensor, cluster: Cluster) -> torch.Tensor:
    """[heads, T, D] -> the cluster's suffixes [heads, n, S, D]; without a copy if all are equally long."""
    if cluster.is_dense:
        return _slice(tensor, cluster.start + cluster.prefix, len(cluster.gather)).unflatten(1, (-1, len(cluster.mask)))
    return tensor.index_select(1, cluster.gather).unflatten(1, (-1, len(cluster.mask)))


def _slice(tensor: torch.Tensor, start: int, length: int) -> torch.Tensor:
    return tensor[:, start : start + length]


def _causal(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scaling: float) -> torch.Tensor:
    """Plain causal attention of one sequence: query [Q, L, D], key and value [K, L, D] -> [Q, L, D]."""
    if query.device.type == "cpu":
        grouped = (query * scaling).unflatten(0, (key.shape[0], -1))
        seen = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).tril()
        return (_softmax(grouped @ key[:, None].transpose(-1, -2), seen) @ value[:, None]).flatten(0, 1)
    repeats = query.shape[0] // key.shape[0]
    keys, values = key.repeat_interleave(repeats, dim=0)[None], value.repeat_interleave(repeats, dim=0)[None]
    return scaled_dot_product_attention(query[None], keys, values, is_causal=True, scale=scaling)[0]


def _suffixes(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """query [Q, n, S, D], key and value [K, n, S, D], prefix [K, P, D] -> [Q, n, S, D].

    Matrix products by hand: on a CPU, at a few hundred tokens, the fused kernel takes two to five times as long, and
    here the prefix's keys are read once for all episodes.
    """
    rows, size = query.shape[1:3]
    grouped = (query * scaling).unflatten(0, (key.shape[0], -1))
    before = grouped.flatten(1, 3) @ prefix_key.transpose(1, 2)
    within = grouped @ key[:, None].transpose(-1, -2)
    weights = _softmax(torch.cat([before.view(*within.shape[:-1], -1), within], dim=-1), mask)
    far, near = weights.split([prefix_key.shape[1], size], dim=-1)
    outputs = (far.flatten(1, 3) @ prefix_value).unflatten(1, (-1, rows, size)) + near @ value[:, None]
    return outputs.flatten(0, 1)


def _softmax(scores: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Over the last axis, where `mask` is set; computed in fp32, given in the scores' dtype."""
    bias = torch.zeros(mask.shape, dtype=scores.dtype).masked_fill_(~mask, float("-inf"))
    return torch.softmax(scores + bias, dim=-1, dtype=torch.float32).to(scores.dtype)


def _suffixes_fused(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    prefix_key: torch.Tensor,
    prefix_value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """The same through the fused kernel, which never holds the scores: for long episodes on an accelerator."""
    rows, repeats = query.shape[1], query.shape[0] // key.shape[0]

    def joined(prefix: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        whole = torch.cat([prefix[:, None].expand(-1, rows, -1, -1), own], dim=2)
        return whole.repeat_interleave(repeats, dim=0).transpose(0, 1)

    outputs = scaled_dot_product_attention(
        query.transpose(0, 1), joined(prefix_key, key), joined(prefix_value, value), attn_mask=mask, scale=scaling
    )
    return outputs.transpose(0, 1)


ALL_ATTENTION_FUNCTIONS.register(PACKED, attend)
