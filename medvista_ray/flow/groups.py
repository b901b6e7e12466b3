"""The life of every group: who it is, where it is, how often it was tried, and that it is trained exactly once.

    WAITING -> RUNNING -> READY -> TRAINED
       ^          |-----> FILTERED  (all rewards equal: no gradient in it; READY if such groups are kept)
       |----------|-----> FAILED    (fewer than G scored episodes, or its generators died too often)

Invariants: a group is trained whole and once, or not at all; its episodes are dropped the moment it leaves READY; every
wait of the learner ends, because a run in which nothing but FILTERED or FAILED comes back is stopped with the cause.
Called by `flow.loop` only.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from medvista_ray.errors import InvariantError, RunFolderError, StarvationError
from medvista_ray.flow.admission import Admission, Counts
from medvista_ray.types import EpisodeStatus, Group, Task

REWARD_EPS = 1e-6
"""Rewards of a group that differ by less carry no signal."""
MAX_UNUSED_BATCHES = 20
"""Batches' worth of groups that may come back unusable in a row before the run is stopped."""


class GroupState(StrEnum):
    """Where a group is."""

    WAITING = "waiting"
    RUNNING = "running"
    READY = "ready"
    TRAINED = "trained"
    FILTERED = "filtered"
    FAILED = "failed"


@dataclass
class GroupRecord:
    """A group in flight."""

    id: int
    task: Task
    state: GroupState = GroupState.WAITING
    num_deaths: int = 0
    """Generators that died under it."""


def has_signal(group: Group) -> bool:
    """Whether its rewards differ."""
    rewards = [episode.reward for episode in group.episodes]
    return max(rewards) - min(rewards) >= REWARD_EPS


def outcome_of(group: Group, group_size: int, keep_equal: bool = False) -> GroupState:
    """READY, FILTERED (zero variance, unless kept) or FAILED (an episode was not scored): what the episodes themselves say."""
    scored = [episode for episode in group.episodes if episode.status is not EpisodeStatus.FAILED]
    if len(scored) < group_size:
        return GroupState.FAILED
    return GroupState.READY if keep_equal or has_signal(group) else GroupState.FILTERED


class GroupLedger:
    """Identities on top of `Admission`'s counts. Every method raises InvariantError on an impossible transition."""

    def __init__(self, admission: Admission, group_size: int, max_retries: int, keep_equal: bool = False) -> None:
        """`keep_equal`: groups without a difference in reward are trained with the others."""
        self.admission = admission
        self._group_size = group_size
        self._keep_equal = keep_equal
        self._max_retries = max_retries
        self._in_flight: dict[int, GroupRecord] = {}
        self._inbox: dict[int, Group] = {}
        self._trained_ids: set[int] = set()
        self._next_id = 0
        self._unused_in_a_row = {GroupState.FILTERED: 0, GroupState.FAILED: 0}

    @property
    def counts(self) -> Counts:
        """Groups by state."""
        return self.admission.counts

    @property
    def version(self) -> int:
        """The learner's version."""
        return self.admission.version

    def submit(self, task: Task) -> GroupRecord:
        """Make a group of `task`, waiting for a generator."""
        record = GroupRecord(self._next_id, task)
        self._next_id += 1
        self.admission.submit(record.id)
        self._in_flight[record.id] = record
        return record

    def next_waiting(self) -> GroupRecord | None:
        """The group that should be dispatched first, if any waits."""
        waiting = self.admission.waiting()
        return self._in_flight[waiting[0]] if waiting else None

    def dispatch(self, record: GroupRecord, served_version: int) -> None:
        """A generator that serves `served_version` starts the group."""
        self.admission.dispatch(record.id, served_version)
        record.state = GroupState.RUNNING

    def generator_died(self, record: GroupRecord) -> GroupState:
        """Its generator died under the group: WAITING again, or FAILED after too many deaths."""
        record.num_deaths += 1
        if record.num_deaths > self._max_retries:
            self._drop(record, GroupState.FAILED)
        else:
            self.admission.requeue(record.id)
            record.state = GroupState.WAITING
        return record.state

    def finish(self, group: Group) -> GroupState:
        """The group came back from its generator: READY, FILTERED or FAILED.

        Raises StarvationError if too many groups in a row were unusable.
        """
        if group.id in self._trained_ids:
            raise InvariantError(f"group {group.id} came back after it was trained")
        record = self._record(group.id)
        outcome = outcome_of(group, self._group_size, self._keep_equal)
        if outcome is not GroupState.READY:
            self._drop(record, outcome)
            return outcome
        group.version_admitted = self.admission.accept(group.id)
        record.state = GroupState.READY
        self._inbox[group.id] = group
        self._unused_in_a_row = dict.fromkeys(self._unused_in_a_row, 0)
        return outcome

    def next_batch(self) -> list[Group] | None:
        """The groups to train now, or None while the learner must wait."""
        ids = self.admission.next_batch()
        return None if ids is None else [self._inbox[group_id] for group_id in ids]

    def trained(self, groups: list[Group]) -> None:
        """The learner trained these groups: forget their episodes, advance the version."""
        ids = [group.id for group in groups]
        if len({*ids}) < len(ids) or not self._trained_ids.isdisjoint(ids):
            raise InvariantError(f"a group was trained twice, among {ids}")
        self.admission.train(ids)
        for group_id in ids:
            del self._in_flight[group_id], self._inbox[group_id]
        self._trained_ids.update(ids)

    def to_json(self) -> dict[str, Any]:
        """All that a restart needs at one instant: counts, trained ids, prompts in flight (not their episodes)."""
        in_flight = [{"id": r.id, "task": r.task.id, "num_deaths": r.num_deaths} for r in self._in_flight.values()]
        return {
            "admission": self.admission.to_json(),
            "next_id": self._next_id,
            "trained_ids": sorted(self._trained_ids),
            "in_flight": sorted(in_flight, key=lambda item: item["id"]),
        }

    def restore(self, state: dict[str, Any], tasks: dict[str, Task]) -> None:
        """Continue from `to_json`: what was in flight is sampled anew, under its old id.

        Raises RunFolderError if a task is gone.
        """
        missing = [item["task"] for item in state["in_flight"] if item["task"] not in tasks]
        if missing:
            raise RunFolderError(f"the checkpoint's groups need tasks that the source no longer makes: {missing[:3]}")
        records = [GroupRecord(i["id"], tasks[i["task"]], num_deaths=i["num_deaths"]) for i in state["in_flight"]]
        self._in_flight = {record.id: record for record in records}
        self._inbox = {}
        self._trained_ids = set(state["trained_ids"])
        self._next_id = state["next_id"]
        self.admission.restore(state["admission"], list(self._in_flight))

    def _record(self, group_id: int) -> GroupRecord:
        record = self._in_flight.get(group_id)
        if record is None or record.state is not GroupState.RUNNING:
            raise InvariantError(f"group {group_id} came back, but it is {record.state if record else 'not in flight'}")
        return record

    def _drop(self, record: GroupRecord, outcome: GroupState) -> None:
        """Give the group's place back, and stop a run that would never train again."""
        if outcome is GroupState.FILTERED:
            self.admission.filter(record.id)
        else:
            self.admission.fail(record.id)
        record.state = outcome
        del self._in_flight[record.id]
        self._unused_in_a_row[outcome] += 1
        if sum(self._unused_in_a_row.values()) > MAX_UNUSED_BATCHES * self.admission.batch_groups:
            raise StarvationError(self._why_starved())

    def _why_starved(self) -> str:
        filtered, failed = self._unused_in_a_row[GroupState.FILTERED], self._unused_in_a_row[GroupState.FAILED]
        return (
            f"no group could be trained among the last {filtered + failed}: {filtered} had equal rewards in all "
            f"episodes (the tasks are too easy or too hard for this policy, or the temperature is too low) and "
            f"{failed} failed (see the log for the tools' and generators' errors)"
        )
