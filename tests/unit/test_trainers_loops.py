"""SFT, GRPO and checkpoints on a tiny random InternVL."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from medvista_ray.config import LearnerConfig, SftConfig, TrainConfig
from medvista_ray.errors import InvariantError, RunFolderError
from medvista_ray.models import precision
from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.logprobs import sampled_logprobs, token_logprobs
from medvista_ray.models.policy import Policy, load_policy, trainable_parameters
from medvista_ray.types import Episode, Group
from tests.unit.tiny_policies import picture, random_episode, random_group, save_random_policy
from trainers.checkpoint import (
    checkpoint_folder,
    latest_checkpoint,
    load_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_policy,
)
from trainers.grpo import GrpoTrainer
from trainers.optim import make_optimizer, set_learning_rate, warmup_constant, warmup_cosine, warmup_linear
from trainers.sft import run_sft

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
EXACT = LearnerConfig(bf16=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy("internvl", tmp_path_factory.mktemp("policy"))


@pytest.fixture
def policy(folder: Path) -> Policy:
    return load_policy(folder)


def config(**grpo: Any) -> TrainConfig:
    return TrainConfig.model_validate({"learner": {"bf16": False}, "grpo": {"learning_rate": 1e-2, **grpo}})


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}


def engine_logprobs(policy: Policy, groups: list[Group]) -> None:
    """Fill in what a perfect engine with these weights would have reported."""
    for group in groups:
        for episode in group.episodes:
            with torch.no_grad():
                values = token_logprobs(policy, build_batch([episode], policy), 1.0, GrpoTrainer(policy, config()).banned)
            episode.logprobs = values[0].numpy()


def mean_logprob(policy: Policy, episodes: list[Episode]) -> float:
    with torch.no_grad():
        values = token_logprobs(policy, build_batch(episodes, policy), 1.0)
    return float(values.sum()) / sum(episode.num_sampled for episode in episodes)


def test_sft_learns_what_it_imitates_and_reports_each_update(policy: Policy) -> None:
    episodes = [random_episode(policy, [picture(i), picture(50 + i)], i) for i in range(6)]
    seen: list[tuple[int, int]] = []
    before = mean_logprob(policy, episodes)
    history = run_sft(
        policy,
        episodes,
        SftConfig(num_epochs=8, batch_size=3, learning_rate=2e-2, warmup_steps=2),
        EXACT,
        lambda step, total, metrics: seen.append((step, total)),
    )
    assert seen == [(step, 16) for step in range(1, 17)]
    assert history[0]["loss"] > 1.5 * history[-1]["loss"]
    assert mean_logprob(policy, episodes) > before + 1.0


def test_sft_gives_the_same_weights_for_the_same_seed_however_it_is_cut(folder: Path) -> None:
    results: list[dict[str, torch.Tensor]] = []
    for seed, budget in ((0, 8192), (0, 60), (1, 8192)):
        policy = load_policy(folder)
        episodes = [random_episode(policy, [picture(i)], i) for i in range(5)]
        run_sft(policy, episodes, SftConfig(num_epochs=1, batch_size=2), EXACT, seed=seed, tokens_per_microbatch=budget)
        results.append(weights(policy))
    whole, cut, other = results
    # A key's bias has no gradient but rounding, which AdamW blows up to whole steps.
    names = [name for name in whole if not name.endswith("k_proj.bias")]
    assert all(torch.allclose(whole[name], cut[name], atol=1e-5) for name in names)
    assert not all(torch.allclose(whole[name], other[name], atol=1e-5) for name in names)


def plain_sft(policy: Policy, episodes: list[Episode], config: SftConfig, budget: int) -> list[float]:
    """Cold start written out for one process and one pass over `episodes`; the loss of each update."""
    chosen = list(trainable_parameters(policy, True).values())
    optimizer = make_optimizer(chosen, config.learning_rate, config.weight_decay, config.adam_eps)
    order = torch.randperm(len(episodes), generator=torch.Generator().manual_seed(0)).tolist()
    starts, losses = range(0, len(order), config.batch_size), list[float]()
    for step, start in enumerate(starts):
        set_learning_rate(optimizer, config.learning_rate * warmup_cosine(step, config.warmup_steps, len(starts)))
        batch = [episodes[i] for i in order[start : start + config.batch_size]]
        num_tokens, loss = sum(episode.num_sampled for episode in batch), 0.0
        for rows in split_microbatches(batch, policy, budget):
            values = sampled_logprobs(policy, build_batch([batch[i] for i in rows], policy), 1.0, ()).values
            part = -values.sum() / num_tokens
            part.backward()
            loss += float(part.detach())
        torch.nn.utils.clip_grad_norm_(chosen, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        losses.append(loss)
    return losses


def test_sft_of_one_process_is_the_plain_loop_bit_for_bit(folder: Path) -> None:
    settings = SftConfig(num_epochs=1, batch_size=3, warmup_steps=1)
    policy, plain = load_policy(folder), load_policy(folder)
    episodes = [random_episode(policy, [picture(i)], i) for i in range(5)]
    history = run_sft(policy, episodes, settings, EXACT, tokens_per_microbatch=60)
    assert [step["loss"] for step in history] == plain_sft(plain, episodes, settings, 60)
    found, want = weights(policy), weights(plain)
    assert all(torch.equal(found[name], tensor) for name, tensor in want.items())


def test_a_grpo_step_raises_good_episodes_and_lowers_bad_ones(policy: Policy) -> None:
    groups = [random_group(policy, number) for number in range(2)]
    engine_logprobs(policy, groups)
    good = [e for g in groups for e in g.episodes if e.reward > 0.5]
    bad = [e for g in groups for e in g.episodes if e.reward < 0.5]
    gap = mean_logprob(policy, good) - mean_logprob(policy, bad)
    trainer = GrpoTrainer(policy, config(warmup_steps=0))
    metrics = trainer.step(groups)
    assert mean_logprob(policy, good) - mean_logprob(policy, bad) > gap + 0.05
    assert metrics["mismatch_kl"] == pytest.approx(0.0, abs=1e-6)
    assert (metrics["ratio_min"], metrics["ratio_max"]) == pytest.approx((1.0, 1.0), abs=1e-4)
    assert metrics["reward_mean"] == 0.5
    assert metrics["version_min"] == metrics["version_max"] == 3.0
    assert metrics["num_trained_tokens"] == sum(e.num_sampled for g in groups for e in g.episodes)


def test_gradients_do_not_depend_on_the_cut_into_micro_batches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results: list[dict[str, torch.Tensor]] = []
    for budget in (8192, 50):
        policy = load_policy(folder)
        trainer = GrpoTrainer(policy, config(tokens_per_microbatch=budget))
        monkeypatch.setattr(trainer.optimizer, "zero_grad", lambda **_: None)
        trainer.step([random_group(policy, n) for n in range(3)])
        results.append({name: w.grad.clone() for name, w in trainer.parameters.items() if w.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert max(float(gradient.abs().max()) for gradient in results[0].values()) > 1e-2
    assert all(torch.allclose(results[0][name], results[1][name], atol=1e-6) for name in results[0])


def test_a_group_of_equal_rewards_changes_nothing(policy: Policy) -> None:
    group = random_group(policy, 0)
    for episode in group.episodes:
        episode.reward = 1.1
    before = weights(policy)
    metrics = GrpoTrainer(policy, config()).step([group])
    assert metrics["grad_norm"] == 0.0
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())


def test_several_updates_on_one_batch_start_at_ratio_one_and_then_move(policy: Policy) -> None:
    groups = [random_group(policy, number) for number in range(2)]
    engine_logprobs(policy, groups)
    trainer = GrpoTrainer(policy, config(num_minibatches=2, warmup_steps=0))
    metrics = trainer.step(groups)
    assert trainer.num_updates == 2
    # The correction compares the engine with the policy before the batch, so it stays 1 throughout.
    assert metrics["ratio_max"] == pytest.approx(1.0, abs=1e-4)
    assert metrics["loss"] != 0.0


def test_the_reference_policy_is_the_one_at_construction(policy: Policy) -> None:
    trainer = GrpoTrainer(policy, config(kl_coef=0.1, warmup_steps=0))
    first, second = (trainer.step([random_group(policy, 0)]) for _ in range(2))
    assert first["reference_kl"] == pytest.approx(0.0, abs=1e-7)
    assert second["reference_kl"] > 1e-4


def test_bf16_autocast_keeps_fp32_weights_and_finite_gradients(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: True)  # emulated where it is not so
    trainer = GrpoTrainer(policy, TrainConfig())
    assert trainer.accelerator.mixed_precision == "bf16"
    metrics = trainer.step([random_group(policy, 0)])
    assert {w.dtype for w in policy.model.parameters()} == {torch.float32}
    assert 0.0 < metrics["grad_norm"] < 1e4


def test_a_cpu_without_bf16_instructions_trains_in_fp32(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "cpu_multiplies_bf16", lambda: False)
    assert GrpoTrainer(policy, TrainConfig()).accelerator.mixed_precision == "no"
    assert precision.uses_bf16(LearnerConfig(num_gpus=1))


def test_an_infinite_loss_is_refused_and_leaves_the_weights(policy: Policy) -> None:
    group = random_group(policy, 0)
    group.episodes[0].reward = float("inf")
    before = weights(policy)
    with pytest.raises(InvariantError, match="not finite"):
        GrpoTrainer(policy, config()).step([group])
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(policy).items())


def test_frozen_vision_weights_stay_as_they_are(policy: Policy) -> None:
    before = weights(policy)
    frozen = TrainConfig.model_validate({"learner": {"bf16": False}, "policy": {"train_vision": False}})
    GrpoTrainer(policy, frozen).step([random_group(policy, 0)])
    changed = {name for name, tensor in weights(policy).items() if not torch.equal(before[name], tensor)}
    assert changed
    assert all("language_model" in name or "lm_head" in name for name in changed)


@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(folder: Path, tmp_path: Path, kl_coef: float) -> None:
    policy = load_policy(folder)
    groups = [random_group(policy, number) for number in range(3)]
    trainer = GrpoTrainer(policy, config(kl_coef=kl_coef))
    for group in groups[:2]:
        trainer.step([group])
    save_checkpoint(tmp_path / "c", policy, trainer, {"step": 2})
    draw = torch.rand(3)
    trainer.step(groups[2:])

    other = load_policy(folder)
    # Other weights than the first run began with: only a restored reference can be the first run's.
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.mul_(1.5)
    resumed = GrpoTrainer(other, config(kl_coef=kl_coef))
    assert load_checkpoint(tmp_path / "c", other, resumed) == {"step": 2}
    assert torch.equal(draw, torch.rand(3))
    resumed.step(groups[2:])
    assert all(torch.equal(tensor, weights(other)[name]) for name, tensor in weights(policy).items())
    assert resumed.num_updates == 3


def test_a_checkpoint_is_a_model_folder_and_replaces_the_last_one_whole(policy: Policy, tmp_path: Path) -> None:
    trainer = GrpoTrainer(policy, config())
    target = checkpoint_folder(tmp_path, 20)
    save_checkpoint(target, policy, trainer, {"step": 1})
    save_checkpoint(target, policy, trainer, {"step": 20})
    assert [path.name for path in tmp_path.iterdir()] == ["step-000020"]
    loaded = load_policy(target)
    assert torch.equal(loaded.model.lm_head.weight, policy.model.lm_head.weight)
    assert loaded.num_image_tokens(picture(0)) == policy.num_image_tokens(picture(0))


def test_a_failed_save_leaves_the_old_checkpoint_and_nothing_else(policy: Policy, tmp_path: Path) -> None:
    trainer = GrpoTrainer(policy, config())
    save_checkpoint(tmp_path / "c", policy, trainer, {"step": 1})
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "c", policy, trainer, {"step": object()})
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert load_checkpoint(tmp_path / "c", policy, trainer) == {"step": 1}


def test_the_latest_checkpoint_is_found_by_number(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None
    for step in (9, 100, 20):
        folder = checkpoint_folder(tmp_path, step)
        folder.mkdir()
        (folder / "extra.json").write_text("{}")
    assert latest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 100)
    before = {path.name for path in tmp_path.iterdir()}
    prune_checkpoints(tmp_path, 1)
    assert latest_checkpoint(tmp_path) == checkpoint_folder(tmp_path, 100)
    gone = before - {path.name for path in tmp_path.iterdir()}
    assert checkpoint_folder(tmp_path, 20).name in gone


def test_a_damaged_checkpoint_is_named(policy: Policy, tmp_path: Path) -> None:
    trainer = GrpoTrainer(policy, config())
    with pytest.raises(RunFolderError, match="nowhere"):
        load_checkpoint(tmp_path / "nowhere", policy, trainer)
    save_checkpoint(tmp_path / "c", policy, trainer, {})
    (tmp_path / "c" / "training_state.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(RunFolderError, match="cannot be resumed"):
        load_checkpoint(tmp_path / "c", policy, trainer)


def test_a_saved_policy_serves_as_a_policy_folder(policy: Policy, tmp_path: Path) -> None:
    save_policy(tmp_path / "final", policy)
    assert load_policy(tmp_path / "final").tokenizer.get_vocab() == policy.tokenizer.get_vocab()


def test_vectors_are_never_decayed() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.LayerNorm(3))
    groups = make_optimizer(layer.parameters(), 1e-3, 0.1).param_groups
    assert {(group["weight_decay"], w.ndim) for group in groups for w in group["params"]} == {(0.1, 2), (0.0, 1)}


def test_learning_rates_warm_up_and_then_stay_or_decay() -> None:
    assert [warmup_constant(step, 3) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    for schedule in (warmup_cosine, warmup_linear):
        curve = [schedule(step, 2, 10) for step in range(10)]
        assert curve[:2] == pytest.approx([1 / 3, 2 / 3])
        assert curve[2] == max(curve) == 1.0
        assert curve[-1] == pytest.approx(0.1)
        assert curve[2:] == sorted(curve[2:], reverse=True)
