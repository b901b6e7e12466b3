"""Corrections for tokens that were sampled by another policy than the one that is trained.

The engine's log-probabilities differ from the learner's by rounding and by staleness. Invariant: a correction is a
weight without gradient; it is 1 where both agree. Called by the loss.

Shapes: [N] over sampled tokens, those of one episode next to each other or not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Bounds:
    """How far the learner may be from the engine (see `config.GrpoConfig`)."""

    tis_cap: float
    mask_low: float = 0.0
    mask_high: float = float("inf")


def truncated_importance_weights(proximal: torch.Tensor, behaviour: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(proximal - behaviour), cap) per token, detached.

    Truncated importance sampling (Ionides 2008) between the learner's and the engine's policy, per token, as proposed
    for RL with a separate inference engine by Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training". `proximal`: the learner's log-probabilities before this batch's first update.
    """
    return (proximal.detach() - behaviour).exp().clamp(max=cap)


def capped_importance_weights(proximal: torch.Tensor, behaviour: torch.Tensor, cap: float) -> torch.Tensor:
    """exp(proximal - behaviour) per token, detached; 0 for a token whose weight exceeds `cap`.

    The behaviour weight of decoupled PPO (arXiv 2110.00641, eq. 3), with AReaL's cap (arXiv 2505.24298): a token that
    the engine found far less likely is left out, where truncation would keep it with too small a weight.
    """
    ratio = (proximal.detach() - behaviour).exp()
    return ratio.where(ratio <= cap, 0.0)


def sequence_mask(proximal: torch.Tensor, behaviour: torch.Tensor, rows: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """1.0 per token of an episode whose ratio lies in [low, high], else 0.0; `rows` [N] int64: the token's episode.

    An episode's ratio is the geometric mean over its tokens, exp(mean(proximal - behaviour)), so that its length does
    not matter: a product would leave out long episodes first. The ratio of a sequence as in GSPO (arXiv 2507.18071,
    eq. 7).
    """
    if not rows.numel():
        return torch.ones_like(behaviour)
    gap = proximal.detach() - behaviour
    num_rows = int(rows.max()) + 1
    counts = torch.bincount(rows, minlength=num_rows).clamp(min=1)
    ratio = (gap.new_zeros(num_rows).index_add_(0, rows, gap) / counts).exp()
    return ((ratio >= low) & (ratio <= high)).to(gap.dtype)[rows]


def _truncated(proximal: torch.Tensor, behaviour: torch.Tensor, rows: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    return truncated_importance_weights(proximal, behaviour, bounds.tis_cap)


def _masked(proximal: torch.Tensor, behaviour: torch.Tensor, rows: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    kept = sequence_mask(proximal, behaviour, rows, bounds.mask_low, bounds.mask_high)
    return kept * truncated_importance_weights(proximal, behaviour, bounds.tis_cap)


def _decoupled(proximal: torch.Tensor, behaviour: torch.Tensor, rows: torch.Tensor, bounds: Bounds) -> torch.Tensor:
    return capped_importance_weights(proximal, behaviour, bounds.tis_cap)


Correction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, Bounds], torch.Tensor]
"""(proximal, behaviour, rows, bounds) -> [N] weights."""

CORRECTIONS: dict[str, Correction] = {"truncated_is": _truncated, "sequence_mask": _masked, "decoupled": _decoupled}
"""By the value of `grpo.correction`."""


def k3_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Per token: r - 1 - log r with r = q / p; over samples of p an unbiased estimate of KL(p || q) that is never
    negative.

    Schulman 2020, "Approximating KL divergence", estimator k3; GRPO's KL term (arXiv 2402.03300, eq. 4).
    """
    difference = log_q - log_p
    return difference.exp() - 1.0 - difference
