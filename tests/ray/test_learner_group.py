"""A learner of two processes over gloo, placed by the supervisor, against one of one process on the same data."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
from ray.util.placement_group import placement_group_table
from safetensors.numpy import load_file

from actors.supervisor import Supervisor
from medvista_ray.config import TrainConfig
from medvista_ray.errors import LearnerGroupError
from medvista_ray.models.policy import load_policy
from medvista_ray.weights.manifest import Manifest
from tests.unit.tiny_policies import picture, random_episode, random_group, save_random_policy

pytestmark = pytest.mark.usefixtures("local_ray")
TIMINGS = {"duration_s", "tokens_per_s"}
Weights = dict[str, np.ndarray[Any, Any]]


def config(num_processes: int) -> TrainConfig:
    """With an epsilon that keeps AdamW from making full steps out of rounding."""
    return TrainConfig.model_validate(
        {
            "learner": {"bf16": False, "num_processes": num_processes},
            "grpo": {"learning_rate": 1e-2, "warmup_steps": 0, "adam_eps": 1e-3, "tokens_per_microbatch": 60},
            "sft": {"num_epochs": 1, "batch_size": 3, "adam_eps": 1e-3, "warmup_steps": 0, "learning_rate": 1e-2},
            "flow": {"keep_checkpoints": 1},
        }
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_random_policy("internvl", tmp_path_factory.mktemp("policy"))


@pytest.fixture
def supervisors(folder: Path, local_ray: None) -> Iterator[dict[int, Supervisor]]:
    """A learner of one process and one of two, both ready."""
    made = {num: Supervisor(config(num)) for num in (1, 2)}
    for num, supervisor in made.items():
        supervisor.start_learner(str(folder), f"group-{num}-{time.time_ns()}")
        supervisor.wait_ready(120)
        if num == 1:
            supervisor_name_is_free(supervisor)
    yield made
    for supervisor in made.values():
        supervisor.shutdown()
