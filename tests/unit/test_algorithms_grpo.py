"""The GRPO pieces against values worked out by hand and against finite differences."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from medvista_ray.algorithms.advantages import group_advantages
from medvista_ray.algorithms.corrections import (
    CORRECTIONS,
    Bounds,
    capped_importance_weights,
    k3_divergence,
    sequence_mask,
    truncated_importance_weights,
)
from medvista_ray.algorithms.grpo import GrpoTerms, grpo_loss, merge_sums
from medvista_ray.config import GrpoConfig

TERMS = GrpoTerms(clip_low=0.2, clip_high=0.28, bounds=Bounds(2.0, 0.8, 1.25))


def test_advantages_are_centred_and_scaled_by_the_sample_deviation() -> None:
    got = group_advantages(torch.tensor([[1.0, 0.0, 0.0, 1.0], [3.0, 1.0, 1.0, 1.0]]), epsilon=0.0)
    # Deviations with G - 1: sqrt(1/3) and 1; means: 0.5 and 1.5.
    half = 0.5 * math.sqrt(3.0)
    assert torch.allclose(got, torch.tensor([[half, -half, -half, half], [1.5, -0.5, -0.5, -0.5]]), atol=1e-6)


@pytest.mark.parametrize("size", [3, 5, 7, 12, 24])
def test_a_group_of_equal_rewards_has_advantages_of_exactly_zero_even_if_their_mean_rounds(size: int) -> None:
    rewards = torch.linspace(0.01, 2.0, 200)[:, None].repeat(1, size)
    # Where the mean of equal rewards is another number, centring alone leaves a rest.
    rounded = rewards[rewards.mean(dim=1) != rewards[:, 0]]
    assert len(rounded) > 0
    assert torch.equal(group_advantages(rounded), torch.zeros_like(rounded))


def test_importance_weights_are_truncated_and_carry_no_gradient() -> None:
    proximal = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = truncated_importance_weights(proximal, torch.tensor([-1.0, -3.0, -2.0]), cap=2.0)
    assert torch.allclose(weights, torch.tensor([1.0, 2.0, math.exp(-1.0)]))
    assert not weights.requires_grad


def test_decoupled_weights_are_whole_and_a_token_above_the_cap_drops_out() -> None:
    proximal = torch.tensor([-1.0, -1.0, -3.0], requires_grad=True)
    weights = capped_importance_weights(proximal, torch.tensor([-1.5, -3.0, -2.0]), cap=2.0)
    assert torch.allclose(weights, torch.tensor([math.exp(0.5), 0.0, math.exp(-1.0)]))
    assert not weights.requires_grad


def test_the_sequence_mask_judges_episodes_by_their_mean_whatever_their_length() -> None:
    behaviour = torch.zeros(7)
    # Episode 0: ratio exp(0.3) at one token, exp(-0.3) at the other: mean 1. Episode 2: 0.2 per token, too high. Episode 1: one
    # token, too low. A product over episode 3's two tokens of 0.15 would be 1.35, above the bound; its mean is below.
    gaps = torch.tensor([0.3, -0.4, 0.5, -0.3, 0.1, 0.15, 0.15])
    rows = torch.tensor([0, 1, 2, 0, 2, 3, 3])
    assert sequence_mask(gaps, behaviour, rows, 0.8, 1.25).tolist() == [1, 0, 0, 1, 0, 1, 1]
    assert sequence_mask(gaps[:0], behaviour[:0], rows[:0], 0.8, 1.25).tolist() == []


def test_every_correction_is_one_where_learner_and_engine_agree() -> None:
    values, rows = torch.tensor([-0.5, -3.0, -9.0]), torch.tensor([0, 1, 1])
    assert set(CORRECTIONS) == set(GrpoConfig.model_fields["correction"].annotation.__args__)
    for correct in CORRECTIONS.values():
        assert torch.equal(correct(values, values.clone(), rows, TERMS.bounds), torch.ones(3))


@pytest.mark.parametrize(
    ("correction", "weights"),
    [
        ("truncated_is", [2.0, math.exp(0.1), math.exp(-0.1)]),
        ("sequence_mask", [0.0, math.exp(0.1), math.exp(-0.1)]),
        ("decoupled", [0.0, math.exp(0.1), math.exp(-0.1)]),
    ],
)
def test_a_masked_token_trains_nothing_but_still_counts_in_the_mean(correction: str, weights: list[float]) -> None:
    terms = GrpoTerms(0.2, 0.28, TERMS.bounds, correction=correction)
    logprobs = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    behaviour = torch.tensor([-2.0, -2.1, -2.9])
    loss, sums = grpo_loss(logprobs, behaviour, torch.ones(3), terms, num_tokens=3, rows=torch.tensor([0, 1, 1]))
    loss.backward()
    assert torch.allclose(logprobs.grad, -torch.tensor(weights) / 3)
    assert sums.masked == float(weights[0] == 0.0)
    # Ratios e, 1.105 and 0.905.
    assert sums.histogram == (0, 0, 1, 0, 1, 0, 1)


def test_the_ratio_histogram_counts_each_token_once_and_an_edge_with_the_bin_above() -> None:
    ratios = torch.tensor([0.1, 0.5, 1.0, 1.25, 7.0])
    _, sums = grpo_loss(ratios.log(), torch.zeros(5), torch.zeros(5), TERMS, num_tokens=5)
    assert sums.histogram == (1, 1, 0, 1, 0, 1, 1)


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


@pytest.mark.parametrize("correction", CORRECTIONS)
@pytest.mark.parametrize("kl_coef", [0.0, 0.3])
def test_gradients_agree_with_finite_differences(kl_coef: float, correction: str) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(12, generator=generator, dtype=torch.float64) * 0.2 - 2.0

    arguments: dict[str, Any] = {"proximal": draw(), "reference": draw() if kl_coef else None, "num_tokens": 20}
    terms = GrpoTerms(clip_low=0.2, clip_high=0.28, bounds=Bounds(1.1, 0.9, 1.2), kl_coef=kl_coef, correction=correction)
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
    assert merged.histogram == sums.histogram
    assert sum(merged.histogram) == 10
    assert (merged.ratio_min, merged.ratio_max) == pytest.approx((sums.ratio_min, sums.ratio_max))


def test_a_divergence_term_without_a_reference_is_refused() -> None:
    zeros = torch.zeros(2)
    with pytest.raises(ValueError, match="reference"):
        grpo_loss(zeros, zeros, zeros, GrpoTerms(0.2, 0.28, Bounds(2.0), kl_coef=0.1), num_tokens=2)
