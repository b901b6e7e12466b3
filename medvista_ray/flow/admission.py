"""When a group may be dispatched and when a batch may be trained, so that staleness is bounded and nothing is dropped.

Owns the counts of groups by state. Invariants, checked after every event:

- num_submitted == num_trained + num_filtered + num_failed + num_in_flight, in flight = waiting + running + ready;
- a group that was dispatched to a generator of version v is trained at the learner's version v + eta at the latest.

The second holds by two rules. B is the batch size in groups, k the learner's version, `accepted` the groups that
finished and entered (or passed) the inbox, that is ready + trained; filtered and failed groups give their place back.

1. Dispatch (AReaL, arXiv 2505.24298): capacity = min((eta + v + 1) * B - (accepted + running), max_running - running),
   where v is the version that the chosen generator has completely loaded, counted from the run's first version.
   A generator that lags therefore gets less work, never staler work.
2. Training: a batch takes the ready groups with the oldest v first, and waits while taking it would leave more than
   (d - k) * B groups in flight with v + eta <= d, for any d. AReaL's capacity alone does not bound a straggler's
   staleness: quick late-comers could overtake a slow group for ever.

Rule 1 keeps "at most (d - k + 1) * B groups in flight with v + eta <= d" true, rule 2 carries it from k to k + 1, and
once all groups have finished rule 2 never blocks: no deadlock. eta = 0 is fully synchronous. With `by_batch` (the
batch-synchronous modes) a third bound holds: no group of the next batch is dispatched before this one has finished.
Called by `flow.groups`.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

from medvista_ray.errors import InvariantError, RunFolderError


@dataclass(frozen=True)
class Counts:
    """Groups by state, at one instant."""

    num_submitted: int = 0
    num_waiting: int = 0
    num_running: int = 0
    num_ready: int = 0
    num_trained: int = 0
    num_filtered: int = 0
    num_failed: int = 0

    @property
    def num_in_flight(self) -> int:
        """Submitted and not yet trained, filtered or failed ("running" in a run's summary)."""
        return self.num_waiting + self.num_running + self.num_ready

    def as_dict(self) -> dict[str, int]:
        """By name, for logs."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


class Admission:
    """The state machine. A group id is in one of waiting, running, ready until it is trained, filtered or failed.

    Every event raises InvariantError if the group is not in the state that the event needs.
    """

    def __init__(self, eta: int, batch_groups: int, max_running: int, *, first_version: int = 0, by_batch: bool = False) -> None:
        self.eta = eta
        self.by_batch = by_batch
        self.batch_groups = batch_groups
        self.max_running = max_running
        self.first_version = first_version
        self.version = first_version
        """The learner's version; one more after every batch."""
        self.final_version: int | None = None
        """No group is dispatched that could only be trained after the learner reached this version."""
        self._waiting: dict[int, None] = {}
        self._running: dict[int, int] = {}
        self._ready: dict[int, int] = {}
        self._num_submitted = self._num_trained = self._num_filtered = self._num_failed = 0

    @property
    def counts(self) -> Counts:
        """Groups by state, now."""
        return Counts(
            num_submitted=self._num_submitted,
            num_waiting=len(self._waiting),
            num_running=len(self._running),
            num_ready=len(self._ready),
            num_trained=self._num_trained,
            num_filtered=self._num_filtered,
            num_failed=self._num_failed,
        )

    def capacity(self, served_version: int) -> int:
        """Groups that may be dispatched now to a generator that serves `served_version` (never negative)."""
        last = served_version + self.eta + 1
        if self.final_version is not None:
            last = min(last, self.final_version)
        accepted = self._num_trained + len(self._ready)
        places = (last - self.first_version) * self.batch_groups
        if self.by_batch:
            places = min(places, (accepted // self.batch_groups + 1) * self.batch_groups)
        return max(0, min(places - accepted, self.max_running) - len(self._running))

    def waiting(self) -> list[int]:
        """Group ids that wait for a generator, in order."""
        return list(self._waiting)

    def submit(self, group_id: int) -> None:
        """A group exists: it waits for a generator."""
        self._waiting[group_id] = None
        self._num_submitted += 1
        self.check()

    def dispatch(self, group_id: int, served_version: int) -> None:
        """A generator serving `served_version` starts the group."""
        if self.capacity(served_version) < 1:
            raise InvariantError(f"group {group_id} dispatched at version {served_version} without capacity")
        self._leave("waiting", self._waiting, group_id)
        self._running[group_id] = served_version
        self.check()

    def requeue(self, group_id: int) -> None:
        """The group's generator died: its tokens are gone and will be sampled anew, by a version of that time."""
        self._leave("running", self._running, group_id)
        self._waiting = {group_id: None, **self._waiting}
        self.check()

    def accept(self, group_id: int) -> int:
        """The group finished and enters the inbox. Returns the version at its dispatch."""
        self._ready[group_id] = self._leave("running", self._running, group_id)
        self.check()
        return self._ready[group_id]

    def filter(self, group_id: int) -> None:
        """The group finished and carries no signal: its place is given back."""
        self._leave("running", self._running, group_id)
        self._num_filtered += 1
        self.check()

    def fail(self, group_id: int) -> None:
        """The group failed for good: its place is given back."""
        self._leave("running", self._running, group_id)
        self._num_failed += 1
        self.check()

    def next_batch(self) -> list[int] | None:
        """Ids of the ready groups to train now, oldest version first; None while the learner must wait."""
        if len(self._ready) < self.batch_groups or not self._leaves_time():
            return None
        return sorted(self._ready, key=self._ready.__getitem__)[: self.batch_groups]

    def train(self, group_ids: list[int]) -> None:
        """The learner trained exactly these groups: its version grows by one."""
        if len(group_ids) != self.batch_groups:
            raise InvariantError(f"a batch of {len(group_ids)} groups was trained, expected {self.batch_groups}")
        for group_id in group_ids:
            dispatched_at = self._leave("ready", self._ready, group_id)
            if self.version - dispatched_at > self.eta:
                raise InvariantError(f"group {group_id} of version {dispatched_at} trained at {self.version}")
        self._num_trained += len(group_ids)
        self.version += 1
        self.check()

    def check(self) -> None:
        """Raise InvariantError unless every submitted group is accounted for."""
        counts = self.counts
        done = counts.num_trained + counts.num_filtered + counts.num_failed
        if counts.num_submitted != done + counts.num_in_flight:
            raise InvariantError(f"groups are lost or counted twice: {counts.as_dict()}")

    def to_json(self) -> dict[str, Any]:
        """Version and final counts; groups in flight are the ledger's to save."""
        counts = self.counts
        return {
            "first_version": self.first_version,
            "version": self.version,
            "num_trained": counts.num_trained,
            "num_filtered": counts.num_filtered,
            "num_failed": counts.num_failed,
        }

    def restore(self, state: dict[str, Any], in_flight: list[int]) -> None:
        """Continue from `to_json`; the groups that were in flight wait for a generator again.

        Raises RunFolderError if this run's batch size is another.
        """
        self.version = state["version"]
        self._num_trained, self._num_filtered = state["num_trained"], state["num_filtered"]
        self._num_failed = state["num_failed"]
        self._num_submitted = self._num_trained + self._num_filtered + self._num_failed + len(in_flight)
        self._waiting = dict.fromkeys(in_flight)
        self.first_version = state["first_version"]
        if self._num_trained != (self.version - self.first_version) * self.batch_groups:
            raise RunFolderError(
                f"the checkpoint trained {self._num_trained} groups in {self.version - self.first_version} steps, "
                f"which does not fit groups_per_step={self.batch_groups}"
            )
        self.check()

    def _leaves_time(self) -> bool:
        """Whether every group in flight can still be trained in time after a batch of the oldest ready ones."""
        ready, running = Counter(self._ready.values()), Counter(self._running.values())
        num_taken = num_due = 0
        for version in sorted(ready | running):
            taken = min(ready[version], self.batch_groups - num_taken)
            num_taken += taken
            num_due += running[version] + ready[version] - taken
            if num_due > max(0, version + self.eta - self.version) * self.batch_groups:
                return False
        return True

    def _leave(self, name: str, place: dict[int, Any], group_id: int) -> Any:
        if group_id not in place:
            raise InvariantError(f"group {group_id} is not {name}")
        return place.pop(group_id)
