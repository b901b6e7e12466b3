"""Log-probabilities of the tokens an engine sampled, with gradients, as cheaply as they can be had.

Owns the learner's forward. Invariants: the softmax runs over the allowed tokens at the sampling temperature, as in the
engine; each distinct picture is encoded once and its features reach every place that shows it; a history that episodes
share is computed once; logits exist only behind histories that a token was sampled after. Called by trainers.

Shapes: B rows, L padded length, T packed tokens, N sampled tokens of the micro-batch (row-major), M distinct histories
before them, H hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.checkpoint import checkpoint

from medvista_ray.models.attention import PACKED, attention_of
from medvista_ray.models.batching import Batch
from medvista_ray.models.policy import Policy

MAX_LOGITS = 2**27
"""Logits kept at once (512 MiB in fp32); beyond it, rows are chunked and recomputed in the backward pass."""


BANNED = -1e30
"""In a banned token's logit: no share of the softmax, and 0, not NaN, in the entropy's p log p."""


@dataclass(frozen=True)
class SampledLogprobs:
    """Of the N sampled tokens, in order of `batch.loss_mask.nonzero()`."""

    values: torch.Tensor
    """[N] float32 log-probabilities, with gradients."""
    entropy: torch.Tensor
    """[N] float32 entropy (nats) of the distribution each token was drawn from, without gradients."""


def token_logprobs(policy: Policy, batch: Batch, temperature: float, banned: Sequence[int] = ()) -> torch.Tensor:
    """[B, L] float32: log-probability of each sampled token given all before it.

    0 elsewhere (see `sampled_logprobs`).
    """
    values = sampled_logprobs(policy, batch, temperature, banned).values
    dense = torch.zeros(batch.loss_mask.shape, dtype=torch.float32, device=values.device)
    return dense.masked_scatter(batch.loss_mask, values)


def sampled_logprobs(policy: Policy, batch: Batch, temperature: float, banned: Sequence[int] = ()) -> SampledLogprobs:
    """Log-probabilities (and entropies) of the sampled tokens, under softmax(logits / temperature) over all tokens but
    `banned`: what vLLM reports as `processed_logprobs` with the same temperature and allowed tokens.
    """
    hidden = hidden_states(policy, batch)
    # The state at position t - 1 predicts token t.
    places, index = scored_places(batch)
    rows, targets = hidden.index_select(0, places), batch.token_ids[batch.loss_mask]
    bias = _ban(policy, banned, hidden.device)
    head = policy.model.lm_head
    chunk = max(1, MAX_LOGITS // head.weight.shape[0])
    if len(rows) <= chunk:
        return SampledLogprobs(*_score(head, rows, index, targets, bias, temperature))
    numbers = [(index // chunk == part).nonzero()[:, 0] for part in range(-(-len(rows) // chunk))]
    parts = [
        checkpoint(_score, head, own, index[mine] % chunk, targets[mine], bias, temperature, use_reentrant=False)
        for own, mine in zip(rows.split(chunk), numbers, strict=True)
    ]
    values, entropy = (torch.cat(part)[torch.cat(numbers).argsort()] for part in zip(*parts, strict=True))
    return SampledLogprobs(values, entropy)


def scored_places(batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """[M] packed tokens behind which a token was sampled, each once, and [N] which of them each sampled token followed."""
    return torch.unique(batch.packing.place[:, :-1][batch.loss_mask[:, 1:]], return_inverse=True)


def hidden_states(policy: Policy, batch: Batch) -> torch.Tensor:
    """[T, H] last hidden states of the packed tokens."""
    trunk = policy.model.model
    arguments: dict[str, Any] = {"use_cache": False, "packing": batch.packing}
    if batch.pixels:
        arguments["mm_encoder_outputs"] = {"image": _encode_images(policy, batch)}
    tokens = batch.token_ids.flatten()[batch.packing.source][None]
    with attention_of(trunk.language_model, PACKED):
        states = trunk(input_ids=tokens, position_ids=_positions(policy, batch), **arguments).last_hidden_state
    return states[0]


def _positions(policy: Policy, batch: Batch) -> torch.Tensor:
    """Position within the episode of each packed token: [1, T], or for Qwen [3, 1, T] (time, row and column)."""
    source, width = batch.packing.source, batch.token_ids.shape[1]
    if "image_grid_thw" not in batch.pixels:
        return (source % width)[None]
    positions, _ = policy.model.model.get_rope_index(
        batch.token_ids,
        mm_token_type_ids=(batch.token_ids == policy.image_token_id).int(),
        image_grid_thw=batch.pixels["image_grid_thw"][batch.image_index],
    )
    return positions.flatten(1)[:, None, source]


def _encode_images(policy: Policy, batch: Batch) -> Any:
    """The vision tower's output with one entry per packed placeholder run.

    Made from one pass over the distinct pictures.
    """
    with _vision_attention(policy):
        outputs = policy.model.get_image_features(**batch.pixels, return_dict=True)
    outputs.pooler_output = _repeat(outputs.pooler_output, batch.packed_images)
    deepstack = getattr(outputs, "deepstack_features", None)
    if deepstack is not None:
        outputs.deepstack_features = [_repeat(level, batch.packed_images) for level in deepstack]
    return outputs


def _vision_attention(policy: Policy) -> AbstractContextManager[None]:
    """On a CPU the fused kernel's backward pass over a few dozen patches takes five times as long as plain products."""
    if policy.model_type == "internvl" and policy.model.device.type == "cpu":
        return attention_of(policy.model.model.vision_tower, "eager")
    return nullcontext()


def _repeat(features: Any, index: torch.Tensor) -> Any:
    """Entry `index[p]` for each p: of a tensor [D, T, H], or of D tensors with different lengths."""
    if isinstance(features, torch.Tensor):
        return features.index_select(0, index)
    return tuple(features[place] for place in index.tolist())


def _ban(policy: Policy, banned: Sequence[int], device: torch.device) -> torch.Tensor:
    """[V] 0, or BANNED for banned tokens and for rows of the head that no token of the tokenizer has."""
    bias = torch.zeros(policy.model.lm_head.weight.shape[0], device=device)
    bias[list(banned)] = BANNED
    bias[len(policy.tokenizer) :] = BANNED
    return bias


def _score(
    head: torch.nn.Module,
    rows: torch.Tensor,
    index: torch.Tensor,
    targets: torch.Tensor,
    bias: torch.Tensor,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probabilities and entropies, both [N] float32, of `targets` [N] behind hidden states `rows` [M, H] by `index` [N]."""
    # One pass each, whatever the logits' dtype: at thousands of rows the vocabulary-wide passes are what costs.
    logs = torch.add(bias, head(rows), alpha=1.0 / temperature).log_softmax(dim=-1)
    values = logs.flatten().index_select(0, index * logs.shape[1] + targets)
    with torch.no_grad():
        entropy = -logs.exp().mul_(logs).sum(dim=-1)
    return values.masked_fill(values < BANNED / 2, float("-inf")), entropy[index]
