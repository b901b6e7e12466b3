"""Which threads the learner uses while the engines idle."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from actors.cores import MAX_THREADS, IdleCores
from medvista_ray.config import LearnerConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_idle_cores_are_taken_only_once_they_are_free() -> None:
    idle = IdleCores(LearnerConfig())
    idle.take()
    assert torch.get_num_threads() == 1
    idle.free()
    idle.take()
    assert torch.get_num_threads() == min(len(os.sched_getaffinity(0)), MAX_THREADS)


def test_several_learner_processes_share_the_idle_cores() -> None:
    idle = IdleCores(LearnerConfig(num_processes=64))
    idle.free()
    idle.take()
    assert torch.get_num_threads() == 1
