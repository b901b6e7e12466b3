"""A learner of two processes over gloo, placed by the supervisor, against one process on the same data."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.exceptions import RayActorError
from ray.util.placement_group import placement_group_table
from safetensors.numpy import load_file

from actors.supervisor import Supervisor
from medvista_ray.config import TrainConfig
from medvista_ray.errors import LearnerGroupError
from medvista_ray.models.adapters import merged_weights
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.types import Episode, Group
from medvista_ray.weights.manifest import Manifest
from tests.unit.tiny_policies import picture, random_episode, random_group, save_random_policy
from trainers.grpo import GrpoTrainer
from trainers.sft import run_sft

pytestmark = pytest.mark.usefixtures("local_ray")
TIMINGS = {"duration_s", "tokens_per_s"}
CALL_TIMEOUT_S = 120.0
Weights = dict[str, np.ndarray[Any, Any]]


def config(num_processes: int) -> TrainConfig:
    """With an epsilon that keeps AdamW from making full steps out of rounding."""
    rates = {"learning_rate": 1e-2, "warmup_steps": 0, "adam_eps": 1e-3}
    return TrainConfig.model_validate(
        {
            "learner": {"bf16": False, "num_processes": num_processes},
            "grpo": {**rates, "tokens_per_microbatch": 60},
            "sft": {**rates, "num_epochs": 1, "batch_size": 3},
            "flow": {"keep_checkpoints": 1},
        }
    )


def expert_episodes(policy: Policy) -> list[Episode]:
    """Five, one without a picture: their micro-batches do not divide by two."""
    return [random_episode(policy, [picture(i)] if i else [], i) for i in range(5)]


def batches(policy: Policy) -> list[list[Group]]:
    return [[random_group(policy, 2 * number), random_group(policy, 2 * number + 1, size=3)] for number in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy("internvl", tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def supervisor(folder: Path, local_ray: None) -> Iterator[Supervisor]:
    """Of a learner of two processes, ready."""
    made = Supervisor(config(2))
    made.start_learner(str(folder), f"group-{time.time_ns()}")
    made.wait_ready(CALL_TIMEOUT_S)
    yield made
    made.shutdown()


def single(folder: Path) -> tuple[list[dict[str, float]], list[Weights]]:
    """The same in this process alone: metrics of all updates, weights after each step of the loop."""
    policy, settings = load_policy(folder), config(1)
    options = {"banned": banned_token_ids(policy.tokenizer), "tokens_per_microbatch": 60}
    metrics = run_sft(policy, expert_episodes(policy), settings.sft, settings.learner, **options)
    trainer, weights = GrpoTrainer(policy, settings), list[Weights]()
    for groups in batches(policy):
        metrics.append(trainer.step(groups))
        weights.append({name: tensor.clone().numpy() for name, tensor in merged_weights(policy, train_vision=True)})
    return metrics, weights


def published(learner: Any, version: int) -> Weights:
    manifest = Manifest.from_json(answer(learner.publish.remote(version)))
    manifest.check()
    assert manifest.version == version
    return load_file(manifest.path)


def answer(ref: Any) -> Any:
    return ray.get(ref, timeout=CALL_TIMEOUT_S)


def distance(first: Weights, second: Weights) -> float:
    assert first.keys() == second.keys()
    assert all(first[name].shape == second[name].shape for name in first)
    return max(float(np.abs(first[name] - second[name]).max()) for name in first)


def test_two_processes_train_publish_and_restore_as_one_does(supervisor: Supervisor, folder: Path, tmp_path: Path) -> None:
    learner: Any = supervisor.learner
    policy = load_policy(folder)
    first, second = batches(policy)
    (tmp_path / "step-000000").mkdir()
    (tmp_path / "step-000000" / "extra.json").write_text("{}")
    metrics = answer(learner.sft.remote(expert_episodes(policy)))
    metrics.append(answer(learner.train.remote(*first)))
    answer(learner.save.remote(str(tmp_path / "step-000001"), {"sampler": 3}))
    metrics.append(answer(learner.train.remote(*second)))
    trained = published(learner, 1)

    wanted, weights = single(folder)
    for got, want in zip(metrics, wanted, strict=True):
        assert got.keys() == want.keys()
        for name in want.keys() - TIMINGS:
            assert got[name] == pytest.approx(want[name], abs=1e-4, rel=1e-4), name
    assert distance(trained, weights[1]) < 1e-4
    assert distance(weights[0], weights[1]) > 1e-3

    assert [path.name for path in tmp_path.iterdir()] == ["step-000001"], "the older one was let go"
    assert answer(learner.load.remote(str(tmp_path / "step-000001"))) == {"sampler": 3}
    restored = published(learner, 2)
    assert distance(restored, weights[0]) < 1e-4
    answer(learner.save_policy.remote(str(tmp_path / "final")))
    state = load_policy(tmp_path / "final").model.state_dict()
    assert distance({name: state[name].numpy() for name in restored}, restored) == 0.0


def test_a_peer_that_dies_is_named_and_nobody_waits_for_it(supervisor: Supervisor, folder: Path) -> None:
    learner: Any = supervisor.learner
    groups = batches(load_policy(folder))[0]
    pid = answer(ray.get_actor("learner-1").ready.remote())["pid"]
    os.kill(pid, signal.SIGSTOP)  # so that the front waits for it in a collective
    call = learner.train.remote(*groups)
    assert ray.wait([call], timeout=3.0)[0] == []
    os.kill(pid, signal.SIGKILL)
    message = r"process 1 of the learner's 2 is gone in train"
    with pytest.raises(LearnerGroupError, match=message):
        ray.get(call, timeout=30.0)
    with pytest.raises(LearnerGroupError, match=message):
        ray.get(learner.publish.remote(9), timeout=5.0)
    assert supervisor.health()["learner-1"].startswith("dead")
    assert supervisor.health()["learner"] == "ok"


def test_shutdown_ends_all_processes_and_gives_their_place_back(supervisor: Supervisor) -> None:
    front = supervisor.learner
    table = placement_group_table()
    assert [entry["strategy"] for entry in table.values() if entry["state"] == "CREATED"] == ["PACK"]
    supervisor.shutdown()
    assert all(entry["state"] == "REMOVED" for entry in placement_group_table().values())
    with pytest.raises(RayActorError):
        ray.get(front.stats.remote(), timeout=30.0)
