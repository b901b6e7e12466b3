"""Admission, group ledger, restart policy, occupancy: the pure parts, one rule at a time."""

from __future__ import annotations

import json

import pytest

from medvista_ray.errors import InvariantError, RunFolderError, StarvationError
from medvista_ray.flow.admission import Admission
from medvista_ray.flow.groups import MAX_UNUSED_BATCHES, GroupLedger, GroupState, outcome_of
from medvista_ray.flow.health import RestartPolicy
from medvista_ray.flow.timing import Occupancy
from medvista_ray.types import EpisodeStatus, Group
from tests.scripted_flow import make_episode, make_tasks

TASKS = make_tasks(10)


def finished(group_id: int, rewards: list[float], num_failed: int = 0) -> Group:
    episodes = [make_episode(TASKS[group_id % 10], [1], reward) for reward in rewards]
    for episode in episodes[:num_failed]:
        episode.status = EpisodeStatus.FAILED
    return Group(id=group_id, episodes=episodes, version_admitted=-1)


def dispatch(admission: Admission, ids: range, version: int) -> None:
    for group_id in ids:
        admission.submit(group_id)
        admission.dispatch(group_id, version)


def make_ledger(max_retries: int = 1, eta: int = 1) -> GroupLedger:
    return GroupLedger(Admission(eta, 2, 8, first_version=1), group_size=2, max_retries=max_retries)


def test_capacity_is_the_published_formula() -> None:
    admission = Admission(eta=1, batch_groups=4, max_running=100)
    assert admission.capacity(0) == (1 + 0 + 1) * 4
    dispatch(admission, range(5), 0)
    admission.accept(0)
    assert admission.capacity(0) == 8 - (1 + 4)
    assert admission.capacity(1) == 12 - (1 + 4)


def test_capacity_is_bounded_by_groups_in_generators_but_not_by_the_inbox() -> None:
    admission = Admission(eta=4, batch_groups=4, max_running=3)
    dispatch(admission, range(3), 0)
    assert admission.capacity(0) == 0
    admission.accept(1)
    assert admission.capacity(0) == 1


def test_filtered_and_failed_groups_give_their_place_back() -> None:
    admission = Admission(eta=0, batch_groups=2, max_running=9)
    dispatch(admission, range(2), 0)
    assert admission.capacity(0) == 0
    admission.filter(0)
    admission.fail(1)
    assert admission.capacity(0) == 2
    assert (admission.counts.num_filtered, admission.counts.num_failed, admission.counts.num_submitted) == (1, 1, 2)


def test_nothing_is_dispatched_that_could_only_be_trained_after_the_end() -> None:
    admission = Admission(eta=3, batch_groups=4, max_running=99, first_version=1)
    admission.final_version = 3
    assert admission.capacity(1) == 8


def test_a_dispatch_without_capacity_is_a_bug() -> None:
    admission = Admission(eta=0, batch_groups=1, max_running=9)
    dispatch(admission, range(1), 0)
    admission.submit(1)
    with pytest.raises(InvariantError, match="without capacity"):
        admission.dispatch(1, 0)


def test_a_straggler_at_its_deadline_makes_the_learner_wait() -> None:
    admission = Admission(eta=1, batch_groups=2, max_running=9)
    dispatch(admission, range(4), 0)
    for group_id in (0, 1):
        admission.accept(group_id)
    admission.train(admission.next_batch() or [])
    dispatch(admission, range(4, 6), 1)
    for group_id in (4, 5, 2):
        admission.accept(group_id)
    # Three groups are ready, but group 3 was sampled by version 0 and must be in the batch that version 1 trains.
    assert admission.next_batch() is None
    admission.accept(3)
    assert admission.next_batch() == [2, 3]


def test_quick_late_comers_cannot_crowd_out_many_slow_groups() -> None:
    admission = Admission(eta=2, batch_groups=2, max_running=99)
    dispatch(admission, range(6), 0)
    for group_id in (0, 1):
        admission.accept(group_id)
    admission.train(admission.next_batch() or [])
    dispatch(admission, range(6, 8), 1)
    for group_id in (6, 7):
        admission.accept(group_id)
    # Groups 2..5 are due at version 2 at the latest: training 6 and 7 now would leave four of them for a batch of two.
    assert admission.next_batch() is None


@pytest.mark.parametrize("event", ["requeue", "accept", "filter", "fail"])
def test_an_event_on_a_group_that_is_not_running_is_a_bug(event: str) -> None:
    admission = Admission(eta=0, batch_groups=1, max_running=1)
    admission.submit(0)
    with pytest.raises(InvariantError, match="group 0 is not running"):
        getattr(admission, event)(0)


def test_lost_groups_are_noticed() -> None:
    admission = Admission(eta=0, batch_groups=1, max_running=1)
    admission.submit(0)
    admission._waiting.clear()
    with pytest.raises(InvariantError, match="lost or counted twice"):
        admission.check()


@pytest.mark.parametrize(
    ("rewards", "num_failed", "outcome"),
    [
        ([0.0, 1.0], 0, GroupState.READY),
        ([1.0, 1.0], 0, GroupState.FILTERED),
        ([0.0, 1.0], 1, GroupState.FAILED),
        ([0.0], 0, GroupState.FAILED),
    ],
)
def test_a_group_is_trained_whole_with_a_signal_or_not_at_all(rewards: list[float], num_failed: int, outcome: GroupState) -> None:
    group = finished(0, rewards, num_failed)
    assert outcome_of(group, group_size=2) is outcome
    kept = GroupState.READY if outcome is GroupState.FILTERED else outcome
    assert outcome_of(group, group_size=2, keep_equal=True) is kept


def test_a_group_cannot_be_trained_twice() -> None:
    ledger = make_ledger()
    for _ in range(2):
        ledger.dispatch(ledger.submit(TASKS[0]), 1)
    groups = [finished(i, [0.0, 1.0]) for i in range(2)]
    for group in groups:
        ledger.finish(group)
    ledger.trained(groups)
    with pytest.raises(InvariantError, match="trained twice"):
        ledger.trained(groups)
    with pytest.raises(InvariantError, match="came back after it was trained"):
        ledger.finish(groups[0])


def test_a_group_that_comes_back_twice_is_a_bug() -> None:
    ledger = make_ledger()
    ledger.dispatch(ledger.submit(TASKS[0]), 1)
    ledger.finish(finished(0, [0.0, 1.0]))
    with pytest.raises(InvariantError, match="it is ready"):
        ledger.finish(finished(0, [0.0, 1.0]))


def test_each_death_redispatches_a_group_once_until_the_retries_are_spent() -> None:
    ledger = make_ledger(max_retries=1)
    record = ledger.submit(TASKS[0])
    other = ledger.submit(TASKS[1])
    ledger.dispatch(record, 1)
    assert ledger.generator_died(record) is GroupState.WAITING
    assert ledger.next_waiting() is record, "before groups that never ran"
    ledger.dispatch(record, 1)
    assert ledger.generator_died(record) is GroupState.FAILED
    assert ledger.next_waiting() is other
    assert ledger.counts.num_failed == 1


@pytest.mark.parametrize(
    ("rewards", "num_failed", "cause"),
    [([1.0, 1.0], 0, r"41 had equal rewards .* 0 failed"), ([0.0, 1.0], 1, r"0 had equal rewards .* 41 failed")],
    ids=["filtered", "failed"],
)
def test_endless_groups_that_cannot_be_trained_end_the_run_with_the_cause(
    rewards: list[float], num_failed: int, cause: str
) -> None:
    ledger = make_ledger()
    for group_id in range(MAX_UNUSED_BATCHES * 2):
        ledger.dispatch(ledger.submit(TASKS[0]), 1)
        ledger.finish(finished(group_id, rewards, num_failed))
    ledger.dispatch(ledger.submit(TASKS[0]), 1)
    with pytest.raises(StarvationError, match=cause):
        ledger.finish(finished(MAX_UNUSED_BATCHES * 2, rewards, num_failed))


def test_one_good_group_resets_the_starvation_count() -> None:
    ledger = make_ledger(eta=1000)
    for group_id in range(MAX_UNUSED_BATCHES * 4):
        ledger.dispatch(ledger.submit(TASKS[0]), 1)
        ledger.finish(finished(group_id, [1.0, 1.0 if group_id % 30 else 0.0]))
    assert ledger.counts.num_ready == 3


def test_the_ledger_survives_json_with_ids_and_counts() -> None:
    ledger = make_ledger()
    for _ in range(4):
        ledger.dispatch(ledger.submit(TASKS[3]), 1)
    ledger.finish(finished(0, [0.0, 1.0]))
    ledger.finish(finished(1, [1.0, 1.0]))
    other = make_ledger()
    other.restore(json.loads(json.dumps(ledger.to_json())), {task.id: task for task in TASKS})
    assert other.counts.num_submitted == 4
    assert other.counts.num_filtered == 1
    assert other.admission.waiting() == [0, 2, 3], "ready and running groups are sampled anew, under their ids"
    assert other.submit(TASKS[0]).id == 4


def test_a_checkpoint_whose_tasks_are_gone_is_refused() -> None:
    ledger = make_ledger()
    ledger.submit(TASKS[3])
    with pytest.raises(RunFolderError, match="task-3"):
        make_ledger().restore(ledger.to_json(), {})


def test_restarts_back_off_are_bounded_and_forgiven_by_success() -> None:
    policy = RestartPolicy(max_in_a_row=4, first_delay_s=1.0, max_delay_s=3.0)
    assert [policy.on_fault() for _ in range(5)] == [1.0, 2.0, 3.0, 3.0, None]
    policy.on_success()
    assert policy.on_fault() == 1.0
    assert policy.num_faults == 6


def test_every_second_belongs_to_one_activity() -> None:
    occupancy = Occupancy("starting", 10.0)
    occupancy.enter("working", 12.0)
    occupancy.enter("waiting", 15.0)
    occupancy.enter("working", 16.0)
    assert occupancy.seconds(20.0) == {"starting": 2.0, "working": 7.0, "waiting": 1.0}
    assert occupancy.idle_fraction(frozenset({"working"}), 20.0) == pytest.approx(0.3)
