"""Corrections for tokens that were sampled by another policy than the one that is trained.

The engine's log-probabilities differ from the learner's by rounding and by staleness. Invariant: a correction is a
weight without gradient; it is 1 where both agree. Called by the loss.

Shapes: [N] over sampled tokens.
"""

from __future__ import annotations

import torch


def truncated_importance_weights(proximal: torch.Tensor, behaviour: torch.Tensor, cap: float) -> torch.Tensor:
    """min(exp(proximal - behaviour), cap) per token, detached.

    Truncated importance sampling (Ionides 2008) between the learner's and the engine's policy, per token, as proposed
    for RL with a separate inference engine by Yao et al. 2025, "Your efficient RL framework secretly brings you
    off-policy RL training". `proximal`: the learner's log-probabilities before this batch's first update.
    """
    return (proximal.detach() - behaviour).exp().clamp(max=cap)


def k3_divergence(log_p: torch.Tensor, log_q: torch.Tensor) -> torch.Tensor:
    """Per token: r - 1 - log r with r = q / p; over samples of p an unbiased estimate of KL(p || q) that is never
    negative.

    Schulman 2020, "Approximating KL divergence", estimator k3; GRPO's KL term (arXiv 2402.03300, eq. 4).
    """
    difference = log_q - log_p
    return difference.exp() - 1.0 - difference
