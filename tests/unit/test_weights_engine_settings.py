"""What an engine is started with, without starting one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from medvista_ray.errors import InvariantError
from medvista_ray.protocol import STOP_STRINGS
from medvista_ray.rollout import vllm_engine
from medvista_ray.rollout.vllm_settings import cpu_environment, split_stops
from medvista_ray.weights.vllm_plugin import ENGINE_CORES, bind_cores, parse_cores


@pytest.mark.parametrize(("text", "cores"), [("", set()), ("0", {0}), ("0-2,6", {0, 1, 2, 6}), ("3,1", {1, 3}), ("2-2", {2})])
def test_core_lists_read_as_in_the_kernels_notation(text: str, cores: set[int]) -> None:
    assert parse_cores(text) == cores


@pytest.mark.parametrize(("cores", "threads"), [("", "1"), ("1", "1"), ("0-3", "4")])
def test_an_engine_has_one_thread_per_core_it_was_given(cores: str, threads: str) -> None:
    assert cpu_environment(cores)["OMP_NUM_THREADS"] == threads


def test_binding_ignores_cores_that_this_process_may_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed = os.sched_getaffinity(0)
    monkeypatch.setenv(ENGINE_CORES, "4000-4003")
    bind_cores()
    assert os.sched_getaffinity(0) == allowed


def test_stops_that_are_one_token_stop_by_id_and_the_end_of_turn_always_does() -> None:
    vocab = {"</tool_call>": 5, "<|im_end|>": 9}
    assert split_stops(vocab, STOP_STRINGS) == ([5, 9], ["</answer>"])
    assert split_stops({**vocab, "</answer>": 6}, STOP_STRINGS) == ([5, 6, 9], [])


def test_each_token_gets_the_version_of_its_span() -> None:
    versions = vllm_engine._versions(output(5, [("3", 0, 2), ("4", 2, 5)]))
    assert versions.tolist() == [3, 3, 4, 4, 4]


def test_a_token_without_a_version_is_a_bug() -> None:
    with pytest.raises(InvariantError, match="1 of 3 tokens"):
        vllm_engine._versions(output(3, [("3", 0, 2)]))


def test_a_token_without_a_log_prob_is_a_bug() -> None:
    with pytest.raises(InvariantError, match="2 log-probs for 3 tokens"):
        vllm_engine._logprobs(output(3, []))


def test_importing_the_engine_does_not_import_vllm(root: Path) -> None:
    code = "import sys, medvista_ray.rollout.vllm_engine; print('vllm' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_busy_time_counts_overlapping_requests_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(vllm_engine.time, "perf_counter", lambda: now)
    clock = vllm_engine._BusyClock()
    clock.start()
    with clock.request():
        now = 1.0
        with clock.request():
            now = 3.0
            assert clock.num_running == 2
    now = 10.0
    assert clock.busy_s() == 3.0
    assert clock.up_s() == 10.0


def output(num_tokens: int, spans: list[tuple[str, int, int]]) -> Any:
    """As vLLM returns it, with two log-probs."""
    return SimpleNamespace(
        token_ids=list(range(num_tokens)),
        logprobs=SimpleNamespace(logprobs=np.zeros(2).tolist()),
        weight_versions=[SimpleNamespace(version=v, start=s, end=e) for v, s, e in spans],
    )
