"""Which threads the learner uses while the engines idle."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch

from actors.cores import MAX_THREADS, IdleCores, Usage
from medvista_ray.config import LearnerConfig


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_idle_cores_are_taken_only_once_they_are_free() -> None:
    idle = IdleCores(LearnerConfig(), iter([Usage(0.0, 0.0, 0.0)]).__next__)
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


@pytest.mark.parametrize(("others", "num_threads"), [(0.3, 2), (0.9, 1), (1.6, 1), (0.0, 2)])
def test_what_other_programs_use_is_left_to_them(others: float, num_threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a second of two cores, of which this process used one; whatever its number of threads was."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    for before in (1, 2):
        torch.set_num_threads(before)
        readings = iter([Usage(10.0, 50.0, 20.0), Usage(11.0, 51.0 + others, 21.0)])
        idle = IdleCores(LearnerConfig(), readings.__next__)
        idle.free()
        idle.take()
        idle.take()
        assert torch.get_num_threads() == num_threads


def test_usage_tells_a_busy_process_from_others() -> None:
    before = Usage.read()
    while time.process_time() < before.own + 0.2:
        pass
    after = Usage.read()
    assert after.own - before.own >= 0.2
    assert after.busy - before.busy >= 0.15  # the system counts in steps of 10 ms
