"""The GRPO pieces against values worked out by hand and against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from medvista_ray.algorithms.advantages import group_advantages
from medvista_ray.algorithms.corrections import k3_divergence, truncated_importance_weights
from medvista_ray.algorithms.grpo import GrpoTerms, grpo_loss, merge_sums

TERMS = GrpoTerms(clip_low=0.2, clip_high=0.28, tis_cap=2.0)


def test_advantages_are_centred_and_scaled_by_the_sample_deviation() -> None:
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]]), epsilon=0.0)
    # Deviations with G - 1: sqrt(1/3) and 1; means: 0.5 and 1.5.
    half = 0.5 * math.sqrt(3.0)
    assert torch.allclose(got, torch.tensor([[half, -half, -half, half], [1.5, -0.5, -0.5, -0.5]]), atol=1e-6)


def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero() -> None:
    # 0.1 + 0.2 style values whose mean is off by rounding.
    assert torch.equal(group_advantages(torch.full((1, 7), 1.1)), torch.zeros(1, 7))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    proximal = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = truncated_importance_weights(proximal, torch.tensor([-1.0, -3.0, -2.0]), cap=2.0)
    assert torch.allclose(weights, torch.tensor([1.0, 2.0, math.exp(-1.0)]))
    assert not weights.requires_grad


def test_k3_is_zero_where_the_policies_agree_and_estimates_the_divergence() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    estimate = (p * k3_divergence(p.log(), q.log())).sum()
    assert float(estimate) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-6)
    assert float(k3_divergence(p.log(), p.log()).abs().max()) == 0.0


def test_the_first_update_gives_the_weighted_policy_gradient() -> None:
    logprobs = torch.tensor([-1.0, -2.0], requires_grad=True)
    loss, sums = grpo_loss(logprobs, torch.tensor([-1.5, -4.0]), torch.tensor([1.0, -0.5]), TERMS, num_tokens=4)
    loss.backward()
    # Weights: exp(0.5) and exp(2) cut at 2; ratio 1; divided by 4.
    assert loss.item() == pytest.approx(-(math.exp(0.5) * 1.0 + 2.0 * -0.5) / 4)
    assert torch.allclose(logprobs.grad, torch.tensor([-math.exp(0.5) / 4, 1.0 / 4]))
    assert (sums.truncated, sums.clipped, sums.num_tokens) == (1.0, 0.0, 2)
    assert (sums.ratio_min, sums.ratio_max) == pytest.approx((math.exp(0.5), math.exp(2.0)))


def test_the_clip_stops_gains_beyond_its_asymmetric_bounds() -> None:
    # Ratios 1.3 > 1.28 and 0.7 < 0.8; the clip binds only where it lowers the objective.
    logprobs = torch.tensor([1.3, 1.3, 0.7, 0.7]).log().requires_grad_()
    advantages = torch.tensor([1.0, -1.0, 1.0, -1.0])
    zero = torch.zeros(4)
    loss, sums = grpo_loss(logprobs, zero, advantages, TERMS, num_tokens=1, proximal=zero)
    loss.backward()
    assert loss.item() == pytest.approx(-(1.28 - 1.3 + 0.7 - 0.8))
    assert torch.allclose(logprobs.grad, torch.tensor([0.0, 1.3, -0.7, 0.0]))
    assert sums.clipped == 2.0


@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gradients_agree_with_finite_differences(kl_coef: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(12, generator=generator, dtype=torch.float64) * 0.2 - 2.0

    arguments: dict[str, Any] = {"proximal": draw(), "reference": draw() if kl_coef else None, "num_tokens": 20}
    terms = GrpoTerms(clip_low=0.2, clip_high=0.28, tis_cap=1.1, kl_coef=kl_coef)
    behaviour, advantages = draw(), draw() + 2.0

    def loss(values: torch.Tensor) -> torch.Tensor:
        return grpo_loss(values, behaviour, advantages, terms, **arguments)[0]

    assert torch.autograd.gradcheck(loss, draw().requires_grad_(), eps=1e-7, atol=1e-6)


def test_micro_batches_add_up_to_the_whole() -> None:
    generator = torch.Generator().manual_seed(1)
    values, behaviour, advantages = (torch.randn(10, generator=generator) for _ in range(3))
    whole, sums = grpo_loss(values, behaviour, advantages, TERMS, num_tokens=10)
    cuts = [slice(0, 3), slice(3, 10)]
    parts = [grpo_loss(values[cut], behaviour[cut], advantages[cut], TERMS, num_tokens=10) for cut in cuts]
    merged = merge_sums([part[1] for part in parts])
    assert float(parts[0][0] + parts[1][0]) == pytest.approx(float(whole), rel=1e-5)
    assert merged.num_tokens == sums.num_tokens
    assert merged.mismatch_kl == pytest.approx(sums.mismatch_kl, rel=1e-5)
    assert (merged.ratio_min, merged.ratio_max) == pytest.approx((sums.ratio_min, sums.ratio_max))


def test_a_divergence_term_without_a_reference_is_refused() -> None:
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(zeros, zeros, zeros, GrpoTerms(0.2, 0.28, 2.0, kl_coef=0.1), num_tokens=2)
