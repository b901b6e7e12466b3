"""The learner actor with the real trainer, transport and checkpoints, on a tiny random policy."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from safetensors.numpy import load_file

from medvista_ray.config import GeneratorConfig, TrainConfig
from medvista_ray.errors import WeightUpdateError
from medvista_ray.metrics import undeclared
from medvista_ray.models.policy import load_policy
from medvista_ray.weights.manifest import Manifest
from tests.unit.tiny_policies import picture, random_episode, random_group, save_random_policy

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = TrainConfig.model_validate(
    {
        "learner": {"bf16": False},
        "grpo": {"learning_rate": 1e-2, "warmup_steps": 0},
        "sft": {"num_epochs": 1, "batch_size": 2},
    }
)


def published(learner: Any, version: int) -> dict[str, np.ndarray[Any, Any]]:
    manifest = Manifest.from_json(ray.get(learner.publish.remote(version), timeout=60))
    manifest.check()
    assert manifest.version == version
    return load_file(manifest.path)


def differs(first: dict[str, np.ndarray[Any, Any]], second: dict[str, np.ndarray[Any, Any]]) -> bool:
    assert first.keys() == second.keys()
    return any(not np.array_equal(first[name], second[name]) for name in first)


def test_the_learner_trains_publishes_and_restores(tmp_path: Path) -> None:
    from actors.learner import LearnerActor
    from medvista_ray.flow.stats import learner_metrics

    folder = save_random_policy("internvl", tmp_path / "policy")
    policy = load_policy(folder)
    remote: Any = LearnerActor
    learner = remote.options(num_cpus=0).remote(CONFIG, str(folder), f"test-{time.time_ns()}")
    assert ray.get(learner.ready.remote(), timeout=120)["num_weights"] > 1000
    base = published(learner, 0)

    episodes = [random_episode(policy, [picture(i)], i) for i in range(4)]
    assert len(ray.get(learner.sft.remote(episodes), timeout=120)) == 2
    cold_started = published(learner, 1)
    assert differs(base, cold_started)

    groups = [random_group(policy, i) for i in range(2)]
    metrics = ray.get(learner.train.remote(*groups), timeout=120)
    assert undeclared(learner_metrics(metrics)) == []
    trained = published(learner, 2)
    assert differs(cold_started, trained)

    ray.get(learner.save.remote(str(tmp_path / "step-000001"), {"sampler": 3}), timeout=60)
    ray.get(learner.train.remote(*groups), timeout=120)
    after_second = published(learner, 3)
    assert ray.get(learner.load.remote(str(tmp_path / "step-000001")), timeout=60) == {"sampler": 3}
    assert not differs(trained, published(learner, 4)), "the checkpoint's weights are back"
    ray.get(learner.train.remote(*groups), timeout=120)
    assert not differs(after_second, published(learner, 5)), "the same step again gives the same weights"

    manifest = Manifest.from_json(ray.get(learner.publish.remote(6)))
    manifest.check()
    ray.get(learner.close.remote(), timeout=60)
    with pytest.raises(WeightUpdateError):
        manifest.check()
    ray.kill(learner)


def test_engine_cores_are_read_as_vllm_reads_them() -> None:
    from actors.cores import engine_cores

    assert engine_cores(GeneratorConfig(num_generators=2)) == {0, 1}
    assert engine_cores(GeneratorConfig(cpu_cores=("0-2", "5|7", "auto"))) == {0, 1, 2, 5, 7}
    assert engine_cores(GeneratorConfig(num_gpus=1)) == set()
