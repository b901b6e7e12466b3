"""A learner of several processes as a configuration, and how its front tells what became of a call. No Ray is started."""

from __future__ import annotations

import socket
from concurrent.futures import Future

import pytest
from ray.exceptions import ActorDiedError

from actors.learner_group import LearnerGroup
from medvista_ray.config import TrainConfig, load_config
from medvista_ray.errors import ConfigError, InvariantError, LearnerGroupError
from trainers.processes import interface_of, open_store


@pytest.mark.parametrize(
    ("override", "rule", "found"),
    [
        ("policy.lora_rank=8", "policy.lora_rank = 0", "policy.lora_rank = 8"),
        ("grpo.kl_coef=0.1", "grpo.kl_coef = 0 ", "grpo.kl_coef = 0.1"),
        ("learner.num_gpus=0.5", "learner.num_gpus = 0 or 1", "learner.num_gpus = 0.5"),
    ],
)
def test_what_several_processes_cannot_do_is_refused_with_the_rule(override: str, rule: str, found: str) -> None:
    load_config(None, [override])
    with pytest.raises(ConfigError, match=rf"^learner.num_processes = 2 goes with {rule}.*, not with {found}$"):
        load_config(None, ["learner.num_processes=2", override])


def test_one_process_is_the_default_and_none_is_refused() -> None:
    assert TrainConfig().learner.num_processes == 1
    assert load_config(None, ["learner.num_processes=4", "learner.num_gpus=1"]).learner.num_processes == 4
    with pytest.raises(ConfigError, match=r"learner.num_processes = 0"):
        load_config(None, ["learner.num_processes=0"])


def test_a_group_without_peers_only_calls() -> None:
    group = LearnerGroup([])
    assert group.call("train", lambda: 3, "argument") == 3
    group.close()


def ended(result: int | Exception | None) -> Future[int]:
    """What this process's own part came to; None: it still hangs."""
    future: Future[int] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    elif result is not None:
        future.set_result(result)
    return future


NOT_FINITE = InvariantError("loss nan")
GONE = ActorDiedError()


@pytest.mark.parametrize(
    ("own", "failed", "is_running", "message"),
    [
        (None, {2: GONE}, True, "process 2 of the learner's 3 is gone in train"),
        (RuntimeError("connection closed by peer"), {2: GONE}, True, "process 2 .* is gone"),
        (None, {1: NOT_FINITE}, True, r"process 1 .* failed \(InvariantError: loss nan\) in train"),
        (7, {1: NOT_FINITE}, False, "process 1 .* failed"),
        (OSError("disk full"), {}, True, r"process 0 .* failed \(OSError: disk full\)"),
    ],
)
def test_a_process_that_leaves_the_others_behind_is_named(
    own: int | Exception | None, failed: dict[int, BaseException], is_running: bool, message: str
) -> None:
    group = LearnerGroup([object(), object()])
    with pytest.raises(LearnerGroupError, match=message):
        group._verdict("train", ended(own), failed, is_running)
    with pytest.raises(LearnerGroupError, match=message):
        group.call("publish", lambda: 1, 4)


def test_a_fault_that_shows_in_all_processes_is_raised_as_it_is() -> None:
    group = LearnerGroup([object(), object()])
    with pytest.raises(InvariantError, match="loss nan"):
        group._verdict("train", ended(NOT_FINITE), {1: NOT_FINITE, 2: NOT_FINITE}, False)
    assert group._verdict("train", ended(7), {}, False) == 7


def test_the_meeting_point_listens_on_its_address_alone() -> None:
    store, port = open_store("127.0.0.1")
    with socket.socket() as other:
        other.bind(("127.0.0.2", port))  # taken, if the store listened on all addresses
    assert store.port == port
    assert interface_of("127.0.0.1") == "lo"
    assert interface_of("203.0.113.77") is None
