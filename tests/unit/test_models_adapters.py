"""LoRA adapters: what they train, what leaves the process, what a checkpoint brings back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from medvista_ray.config import TrainConfig
from medvista_ray.models.adapters import add_adapters, has_adapters, merged_weights
from medvista_ray.models.batching import build_batch
from medvista_ray.models.logprobs import token_logprobs
from medvista_ray.models.policy import Policy, load_policy, trainable_parameters
from tests.unit.tiny_policies import random_group, save_random_policy
from trainers.checkpoint import load_checkpoint, save_checkpoint
from trainers.grpo import GrpoTrainer

pytestmark = pytest.mark.usefixtures("fresh_accelerate")
pytest.importorskip("peft")
CONFIG = TrainConfig.model_validate(
    {
        "learner": {"bf16": False},
        "policy": {"lora_rank": 4, "train_vision": False},
        "grpo": {"learning_rate": 1e-1, "warmup_steps": 0},
    }
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy("internvl", tmp_path_factory.mktemp("policy"))


def adapted(folder: Path) -> Policy:
    policy = load_policy(folder)
    add_adapters(policy, CONFIG.policy)
    return policy


@torch.no_grad()
def values(policy: Policy) -> torch.Tensor:
    return token_logprobs(policy, build_batch(random_group(policy, 0).episodes, policy), 1.0)


def test_fresh_adapters_change_nothing_and_are_all_that_is_trained(folder: Path) -> None:
    plain, policy = load_policy(folder), adapted(folder)
    assert not has_adapters(plain)
    assert torch.allclose(values(policy), values(plain), atol=1e-6)
    before = {name: tensor.clone() for name, tensor in policy.model.state_dict().items()}
    GrpoTrainer(policy, CONFIG).step([random_group(policy, 0)])
    changed = {name for name, tensor in policy.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(".lora_" in name for name in changed)
    assert any("vision" in name for name in trainable_parameters(policy, True))
    assert not any("embed_tokens" in name for name in trainable_parameters(policy, True))


def test_what_is_published_is_merged_under_the_models_own_names(folder: Path) -> None:
    plain, policy = load_policy(folder), adapted(folder)
    GrpoTrainer(policy, CONFIG).step([random_group(policy, 0)])
    sent = dict(merged_weights(policy, train_vision=False))
    assert sent
    assert all("_proj.weight" in name and "language_model" in name for name in sent)
    assert torch.abs(values(policy) - values(plain)).max() > 1e-2
    assert plain.model.load_state_dict(sent, strict=False).unexpected_keys == []
    assert torch.allclose(values(plain), values(policy), atol=1e-5)


def test_a_resumed_run_with_adapters_goes_on_bit_for_bit_from_a_merged_model_folder(folder: Path, tmp_path: Path) -> None:
    policy = adapted(folder)
    trainer = GrpoTrainer(policy, CONFIG)
    trainer.step([random_group(policy, 0)])
    save_checkpoint(tmp_path / "c", policy, trainer, {})
    assert torch.allclose(values(load_policy(tmp_path / "c")), values(policy), atol=1e-5)
    trainer.step([random_group(policy, 1)])
    other = adapted(folder)
    resumed = GrpoTrainer(other, CONFIG)
    load_checkpoint(tmp_path / "c", other, resumed)
    resumed.step([random_group(policy, 1)])
    stored = other.model.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in policy.model.state_dict().items())
