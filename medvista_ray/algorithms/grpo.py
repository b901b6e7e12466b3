"""The GRPO loss: clipped surrogate, each token weighted by an off-policy correction.

Pure torch: no model, no configuration objects. Invariant: the loss of micro-batches adds up to the loss of the whole
batch, since every one is divided by the same global count of trained tokens. Called by the GRPO trainer, once per
micro-batch.

Shapes: [N] over the sampled tokens of a micro-batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from medvista_ray.algorithms.corrections import CORRECTIONS, Bounds, k3_divergence

RATIO_EDGES = (0.5, 0.8, 0.95, 1.05, 1.25, 2.0)
"""Of the histogram of learner / engine probability ratios."""


@dataclass(frozen=True)
class GrpoTerms:
    """The loss's constants (see `config.GrpoConfig`)."""

    clip_low: float
    clip_high: float
    bounds: Bounds
    kl_coef: float = 0.0
    correction: str = "truncated_is"


@dataclass(frozen=True)
class TokenSums:
    """Sums and extremes over tokens, so that micro-batches can be merged."""

    num_tokens: int
    mismatch_kl: float
    """Sum of k3 estimates of KL(engine || learner), nats."""
    clipped: float
    """Tokens whose surrogate the clip cut off."""
    truncated: float
    """Tokens whose importance ratio exceeds the cap."""
    masked: float
    """Tokens that the correction left out."""
    reference_kl: float
    """Sum of k3 estimates of KL(policy || reference), nats."""
    ratio: float
    """Sum of learner / engine probability ratios, before truncation."""
    ratio_min: float
    ratio_max: float
    histogram: tuple[float, ...]
    """Tokens by that ratio: below the first of RATIO_EDGES, between each two, from the last on."""


def grpo_loss(
    logprobs: torch.Tensor,
    behaviour: torch.Tensor,
    advantages: torch.Tensor,
    terms: GrpoTerms,
    num_tokens: int,
    proximal: torch.Tensor | None = None,
    reference: torch.Tensor | None = None,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, TokenSums]:
    """Scalar loss (to minimise) of the N given tokens, divided by `num_tokens`, the count over the whole update.

    loss = - sum of w * min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) / num_tokens [+ kl_coef * sum of k3 /
    num_tokens] with r = exp(logprobs - proximal) and w without gradient, from `proximal` and `behaviour` by
    `terms.correction`. Tokens that a correction leaves out still count in `num_tokens`.

    `logprobs` [N] of the policy, with gradients; `behaviour` [N] of the engine; `advantages` [N] of each token's
    episode; `proximal` [N] of the policy before the batch's first update (None: this is the first update, so
    `logprobs` itself); `reference` [N] of the frozen policy, needed if kl_coef > 0; `rows` [N] int64 each token's
    episode (None: all of one).
    Clipped surrogate: PPO (arXiv 1707.06347, eq. 7); asymmetric clip and normalisation by tokens: DAPO (arXiv
    2503.14476, sections 3.1, 3.3); separate proximal policy: decoupled PPO (arXiv 2110.00641) as in AReaL (arXiv
    2505.24298).
    """
    anchor = logprobs.detach() if proximal is None else proximal
    rows = torch.zeros(len(behaviour), dtype=torch.int64, device=behaviour.device) if rows is None else rows
    ratio = (logprobs - anchor).exp()
    weights = CORRECTIONS[terms.correction](anchor, behaviour, rows, terms.bounds)
    plain = ratio * advantages
    clipped = ratio.clamp(1.0 - terms.clip_low, 1.0 + terms.clip_high) * advantages
    loss = -(weights * torch.minimum(plain, clipped)).sum()
    kl = torch.zeros_like(logprobs)
    if terms.kl_coef > 0.0:
        if reference is None:
            raise ValueError("kl_coef > 0 needs the reference policy's log-probabilities")
        kl = k3_divergence(logprobs, reference)
        loss = loss + terms.kl_coef * kl.sum()
    with torch.no_grad():
        sums = _sums(anchor, behaviour, clipped < plain, kl, weights, terms.bounds.tis_cap)
    return loss / num_tokens, sums


def merge_sums(parts: Sequence[TokenSums]) -> TokenSums:
    """The sums over all micro-batches."""
    merge: dict[str, Any] = {
        "ratio_min": min,
        "ratio_max": max,
        "histogram": lambda rows: tuple(map(sum, zip(*rows, strict=True))),
    }
    merged: dict[str, Any] = {f.name: merge.get(f.name, sum)(getattr(p, f.name) for p in parts) for f in fields(TokenSums)}
    return TokenSums(**merged)


def _sums(
    anchor: torch.Tensor,
    behaviour: torch.Tensor,
    was_clipped: torch.Tensor,
    kl: torch.Tensor,
    weights: torch.Tensor,
    cap: float,
) -> TokenSums:
    ratio = (anchor - behaviour).exp()
    edges = torch.tensor(RATIO_EDGES, dtype=ratio.dtype, device=ratio.device)
    counts = torch.bincount(torch.bucketize(ratio, edges, right=True), minlength=len(RATIO_EDGES) + 1)
    return TokenSums(
        num_tokens=anchor.numel(),
        mismatch_kl=float(k3_divergence(behaviour, anchor).sum()),
        clipped=float(was_clipped.sum()),
        truncated=float((ratio > cap).sum()),
        masked=float((weights == 0.0).sum()),
        reference_kl=float(kl.sum()),
        ratio=float(ratio.sum()),
        ratio_min=float(ratio.min()) if ratio.numel() else float("inf"),
        ratio_max=float(ratio.max()) if ratio.numel() else 0.0,
        histogram=tuple(map(float, counts.tolist())),
    )
