"""Two learner processes over gloo against one process on the same batches."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from medvista_ray.models.policy import load_policy
from tests.e2e.sharded_worker import BANNED, batches, config, first_gradients
from tests.unit.tiny_policies import save_random_policy
from trainers.grpo import GrpoTrainer

TIMINGS = {"duration_s", "tokens_per_s"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy("internvl", tmp_path_factory.mktemp("policy"))


@pytest.fixture(scope="module")
def out(folder: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where two processes left what they found; the launcher picks a free port."""
    out = tmp_path_factory.mktemp("out")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    script = root / "tests" / "e2e" / "sharded_worker.py"
    done = subprocess.run([*launch, str(script), str(folder), str(out)], cwd=root, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


@pytest.fixture(scope="module")
def found(out: Path) -> dict[str, Any]:
    return torch.load(out / "found.pt", weights_only=True)


@pytest.fixture(scope="module")
def single(folder: Path) -> dict[str, Any]:
    """The same in this process alone."""
    policy = load_policy(folder)
    trainer = GrpoTrainer(policy, config(), BANNED)
    first, *rest = batches(policy)
    gradients, metrics = first_gradients(trainer, first)
    return {"gradients": gradients, "steps": [metrics, *[trainer.step(groups) for groups in rest]]}


def test_loss_and_metrics_of_three_steps_are_those_of_one_process(found: dict[str, Any], single: dict[str, Any]) -> None:
    for got, want in zip(found["steps"], single["steps"], strict=True):
        assert got.keys() == want.keys()
        for name in want.keys() - TIMINGS:
            assert got[name] == pytest.approx(want[name], abs=1e-5, rel=1e-5), name


def test_gradients_are_those_of_one_process(found: dict[str, Any], single: dict[str, Any]) -> None:
    got, want = found["gradients"], single["gradients"]
    assert got.keys() == want.keys()
    assert max(float(gradient.abs().max()) for gradient in want.values()) > 1e-2
    assert max(float((got[name] - gradient).abs().max()) for name, gradient in want.items()) < 1e-5


def test_each_process_holds_about_half_of_the_weights(found: dict[str, Any]) -> None:
    total = sum(tensor.numel() for tensor in found["saved"].values())
    assert 0.4 * total < found["num_own_weights"] < 0.6 * total


def test_a_resumed_learner_goes_on_bit_for_bit(found: dict[str, Any]) -> None:
    assert found["extra"] == {"step": 2}
    assert found["num_updates"] == 3
    assert found["same_draw"]
    assert found["after"].keys() == found["after_resumed"].keys()
    assert all(torch.equal(tensor, found["after_resumed"][name]) for name, tensor in found["after"].items())
    assert any(not torch.equal(tensor, found["saved"][name]) for name, tensor in found["after"].items())


def test_a_sharded_checkpoint_is_a_model_folder(found: dict[str, Any], out: Path) -> None:
    loaded = load_policy(out / "checkpoint").model.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in found["saved"].items())
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_bf16_with_several_updates_is_near_fp32(found: dict[str, Any]) -> None:
    assert found["bf16"]["loss"] == pytest.approx(found["steps"][0]["loss"], abs=0.1)
    assert 0.0 < found["bf16"]["grad_norm"] < 1e4
