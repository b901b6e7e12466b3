"""Silent errors of other trainers, each as a test that fails without its remedy: masks, normalisation, ratios, pictures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from medvista_ray.config import TrainConfig
from medvista_ray.errors import InvariantError
from medvista_ray.models.batching import build_batch
from medvista_ray.models.logprobs import token_logprobs
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.types import Episode, EpisodeStatus, Group
from tests.unit.tiny_policies import picture, random_episode, random_group, save_random_policy, task
from trainers.grpo import GrpoTrainer

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
BANNED = (0, 1)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return load_policy(save_random_policy("internvl", tmp_path_factory.mktemp("policy")))


def gradients(policy: Policy, groups: list[Group], **grpo: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of one step before the clip, and its metrics; the policy stays as it is."""
    config = TrainConfig.model_validate({"learner": {"bf16": False}, "grpo": {"max_grad_norm": 1e9, **grpo}})
    trainer = GrpoTrainer(policy, config, BANNED)
    trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign]
    trainer.optimizer.zero_grad = lambda **_: None  # type: ignore[method-assign]
    policy.model.zero_grad(set_to_none=True)
    metrics = trainer.step(groups)
    return {name: w.grad.clone() for name, w in trainer.parameters.items() if w.grad is not None}, metrics


def close(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> bool:
    return got.keys() == want.keys() and all(torch.allclose(got[n], want[n], atol=1e-6, rtol=1e-4) for n in want)


def alone(policy: Policy, episode: Episode) -> torch.Tensor:
    """[L - 1] log-probabilities of tokens 1.. by the model's own forward of this episode only."""
    ids = torch.from_numpy(episode.token_ids.astype(np.int64))[None]
    logits = policy.model(input_ids=ids, use_cache=False, **policy.pixel_inputs(episode.images)).logits[0]
    logits[:, list(BANNED)] = float("-inf")
    return logits.log_softmax(-1)[:-1].gather(-1, ids[0, 1:, None])[:, 0]


def by_hand(policy: Policy, groups: list[Group]) -> dict[str, torch.Tensor]:
    """The update's gradients with nothing shared, packed or cut: one forward per episode, loops over tokens."""
    policy.model.zero_grad(set_to_none=True)
    count = sum(int(e.loss_mask.sum()) for g in groups for e in g.episodes)
    total = torch.zeros(())
    for group in groups:
        rewards = np.array([e.reward for e in group.episodes])
        for episode in group.episodes:
            advantage = (episode.reward - rewards.mean()) / (rewards.std(ddof=1) + 1e-4)
            values = alone(policy, episode)
            for place in range(1, len(episode.token_ids)):
                if episode.loss_mask[place]:
                    value = values[place - 1]
                    weight = min(float((value.detach() - float(episode.logprobs[place])).exp()), 2.0)
                    total = total - weight * float(advantage) * value / count
    total.backward()
    return {name: w.grad.clone() for name, w in policy.model.named_parameters() if w.grad is not None}


def ragged(policy: Policy) -> list[Group]:
    """Groups of two and four, episodes with one to three pictures, turns and observations in turn."""
    first, second = random_group(policy, 0, size=4), random_group(policy, 1, size=2)
    longer = random_episode(policy, [picture(1000), picture(7), picture(8)], 99, reward=0.4)
    return [replace(first, episodes=[*first.episodes[:3], longer]), second]


@pytest.mark.parametrize("budget", [8192, 60])
def test_an_update_equals_one_forward_per_episode_with_loops_over_tokens(policy: Policy, budget: int) -> None:
    groups = ragged(policy)
    got, _ = gradients(policy, groups, tokens_per_microbatch=budget)
    want = by_hand(policy, groups)
    assert max(float(g.abs().max()) for g in want.values()) > 1e-3
    assert close(got, want)


def test_what_the_policy_did_not_sample_is_never_trained(policy: Policy) -> None:
    groups = ragged(policy)
    want, metrics = gradients(policy, groups)
    for episode in (e for g in groups for e in g.episodes):
        episode.logprobs = np.where(episode.loss_mask, episode.logprobs, 1e3).astype(np.float32)
        episode.versions = np.where(episode.loss_mask, episode.versions, 77).astype(np.int32)
    got, garbled = gradients(policy, groups)
    assert all(torch.equal(got[name], gradient) for name, gradient in want.items())
    kept = metrics.keys() - {"duration_s", "tokens_per_s"}
    assert {name: metrics[name] for name in kept} == {name: garbled[name] for name in kept}


def test_an_episode_that_ends_in_an_observation_is_trained_with_its_reward(policy: Policy) -> None:
    group = random_group(policy, 0)
    last = group.episodes[0]
    tail = [int(t) for t in last.token_ids[:5]]
    cut = replace(
        last,
        status=EpisodeStatus.TRUNCATED,
        token_ids=np.array([*last.token_ids, *tail], np.int32),
        loss_mask=np.array([*last.loss_mask, *[False] * 5]),
        logprobs=np.array([*last.logprobs, *[0.0] * 5], np.float32),
        versions=np.array([*last.versions, *[-1] * 5], np.int32),
    )
    want, _ = gradients(policy, [group])
    got, _ = gradients(policy, [replace(group, episodes=[cut, *group.episodes[1:]])])
    assert close(got, want)


def test_a_group_without_a_difference_adds_exactly_nothing(policy: Policy) -> None:
    group, flat = random_group(policy, 0), random_group(policy, 1)
    for episode in flat.episodes:
        episode.reward = 1.1
        episode.task = task("another")
    want, alone_metrics = gradients(policy, [group])
    got, metrics = gradients(policy, [group, flat])
    share = alone_metrics["num_trained_tokens"] / metrics["num_trained_tokens"]
    assert share < 0.7
    assert close(got, {name: gradient * share for name, gradient in want.items()})


def test_nothing_is_computed_for_an_episode_without_an_advantage(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    group, flat = random_group(policy, 0), random_group(policy, 1)
    for episode in flat.episodes:
        episode.reward = 1.1
    built: list[Episode] = []

    def watched(episodes: list[Episode], policy: Policy) -> Any:
        built.extend(episodes)
        return build_batch(episodes, policy)

    monkeypatch.setattr("trainers.grpo.build_batch", watched)
    gradients(policy, [flat, group], num_minibatches=1)
    assert {id(episode) for episode in built} == {id(episode) for episode in group.episodes}
    built.clear()
    gradients(policy, [flat, group], kl_coef=0.1)
    assert len(built) == 2 * len(group.episodes), "the KL term pulls on every episode"


@pytest.mark.parametrize("budget", [8192, 60, 1])
def test_ratios_of_an_exact_engine_are_one_however_micro_batches_are_cut(policy: Policy, budget: int) -> None:
    groups = ragged(policy)
    for episode in (e for g in groups for e in g.episodes):
        with torch.no_grad():
            episode.logprobs = token_logprobs(policy, build_batch([episode], policy), 1.0, BANNED)[0].numpy()
    _, metrics = gradients(policy, groups, tokens_per_microbatch=budget)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert metrics["mismatch_kl"] == pytest.approx(0.0, abs=1e-7)
    assert metrics["ratio_hist_3"] == 1.0
    assert metrics["masked_frac"] == metrics["tis_frac"] == 0.0


def test_a_ratio_is_taken_at_the_sampling_temperature(policy: Policy) -> None:
    groups = ragged(policy)
    for episode in (e for g in groups for e in g.episodes):
        with torch.no_grad():
            episode.logprobs = token_logprobs(policy, build_batch([episode], policy), 0.6, BANNED)[0].numpy()
    config = TrainConfig.model_validate({"learner": {"bf16": False}, "rollout": {"temperature": 0.6}})
    trainer = GrpoTrainer(policy, config, BANNED)
    trainer.optimizer.step = lambda *_: None  # type: ignore[method-assign]
    assert trainer.step(groups)["mismatch_kl"] == pytest.approx(0.0, abs=1e-7)
    assert gradients(policy, groups)[1]["mismatch_kl"] > 1e-3


def test_a_stale_episode_is_masked_whole_and_the_others_stay(policy: Policy) -> None:
    groups = ragged(policy)
    for episode in (e for g in groups for e in g.episodes):
        with torch.no_grad():
            episode.logprobs = token_logprobs(policy, build_batch([episode], policy), 1.0, BANNED)[0].numpy()
    stale = groups[0].episodes[1]
    stale.logprobs = np.where(stale.loss_mask, stale.logprobs + 0.5, 0.0).astype(np.float32)
    total = sum(e.num_sampled for g in groups for e in g.episodes)
    for budget in (8192, 60):
        _, metrics = gradients(policy, groups, correction="sequence_mask", tokens_per_microbatch=budget)
        assert metrics["masked_frac"] == pytest.approx(stale.num_sampled / total)
    assert gradients(policy, groups)[1]["masked_frac"] == 0.0


def test_versions_within_an_episode_are_reported_as_their_span(policy: Policy) -> None:
    groups = ragged(policy)
    long = groups[0].episodes[3]
    sampled = np.flatnonzero(long.loss_mask)
    long.versions[sampled[-3:]] = 5
    metrics = gradients(policy, groups)[1]
    assert (metrics["version_min"], metrics["version_max"], metrics["version_span"]) == (3.0, 5.0, 2.0)


def test_an_episode_cut_inside_a_picture_is_refused(policy: Policy) -> None:
    episode = random_episode(policy, [picture(0), picture(1)], 0)
    places = np.flatnonzero(episode.token_ids == policy.image_token_id)
    end = int(places[-1])
    arrays = {name: getattr(episode, name)[:end] for name in ("token_ids", "loss_mask", "logprobs", "versions")}
    with pytest.raises(InvariantError, match=r"7 image tokens, 8 picture features"):
        build_batch([replace(episode, **arrays)], policy)


def test_a_picture_without_its_message_is_refused(policy: Policy) -> None:
    episode = random_episode(policy, [picture(0)], 0)
    with pytest.raises(InvariantError, match=r"4 image tokens, 8 picture features"):
        build_batch([replace(episode, images=[*episode.images, picture(1)])], policy)


def test_each_episode_keeps_its_own_pictures_when_rows_are_sorted_and_shared(policy: Policy) -> None:
    episodes = ragged(policy)[0].episodes
    together = token_logprobs(policy, build_batch(episodes[::-1], policy), 1.0, BANNED)
    for row, episode in zip(together, episodes[::-1], strict=True):
        sampled = torch.from_numpy(episode.loss_mask[1:])
        assert torch.allclose(row[1 : len(episode.token_ids)][sampled], alone(policy, episode)[sampled], atol=1e-5)
