"""The asynchronous loop: generators sample while the learner trains; nobody waits longer than the invariants ask.

Owns the order of events, nothing else: counts and staleness are `flow.groups` and `flow.admission`, generators
`flow.fleet`, numbers `flow.stats`. Who waits for whom: the learner for a batch, a generator for admission, nobody for
a weight update. Invariants: submitted == trained + filtered + failed + in flight after every event; every group is
trained once or not at all; a checkpoint holds learner, admission, sampler and prompts in flight as of one instant.
Knows neither Ray nor torch: the coordinator actor runs it with actors, unit tests with scripted ones. One asyncio
loop only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from medvista_ray.config import Sampling, TrainConfig
from medvista_ray.errors import InvariantError
from medvista_ray.flow.admission import Admission
from medvista_ray.flow.background import Background
from medvista_ray.flow.fleet import Fleet
from medvista_ray.flow.groups import GroupLedger, GroupRecord, GroupState, has_signal
from medvista_ray.flow.protocols import Generator, Learner
from medvista_ray.flow.recorder import MetricsRecorder
from medvista_ray.flow.sampler import make_sampler
from medvista_ray.flow.slots import Limits, Slot
from medvista_ray.flow.stats import StepStats, learner_metrics
from medvista_ray.flow.timing import Occupancy
from medvista_ray.types import Group, Task

log = logging.getLogger(__name__)
T = TypeVar("T")

LEARNER_BUSY = frozenset({"training", "publishing", "saving"})
WAITING = "waiting_for_groups"

OnGroups = Callable[[Sequence[Group], str, int], None]
"""Called in a thread with finished groups, their outcome and the learner's step."""
REPORTED_AT_ONCE = 16
"""Groups per such call, at most: each call changes threads twice, and one for all would hold the log for seconds."""


@dataclass(frozen=True)
class LoopSettings:
    """What the loop needs of a run's configuration."""

    eta: int
    batch_groups: int
    group_size: int
    max_running: int
    max_retries: int
    checkpoint_every: int
    seed: int
    by_batch: bool = False
    """Generation goes batch by batch and weights change in between (the modes "sync" and "one_step_off")."""
    first_version: int = 1
    """Version of the weights that the run starts with; engines come up with version 0."""
    checkpoint_root: str = ""
    """Folder of the checkpoints step-<number>; empty writes none."""
    limits: Limits = field(default_factory=Limits)
    sampling: Sampling = "uniform"
    keep_equal: bool = False
    """Whether groups whose episodes all score the same count as trained."""

    @classmethod
    def of(cls, config: TrainConfig, checkpoint_root: Path, first_version: int = 1) -> LoopSettings:
        """The settings of a run."""
        return cls(
            eta=config.flow.eta,
            batch_groups=config.grpo.groups_per_step,
            group_size=config.grpo.group_size,
            max_running=config.flow.max_running_groups,
            max_retries=config.flow.max_group_retries,
            checkpoint_every=config.flow.checkpoint_every,
            seed=config.seed,
            by_batch=config.flow.mode != "async",
            first_version=first_version,
            checkpoint_root=str(checkpoint_root),
            sampling=config.flow.sampling,
            keep_equal=config.grpo.equal_groups == "keep",
        )


class TrainingLoop:
    """Drives generators and learner. Construct it inside a running asyncio loop; `run` once."""

    def __init__(
        self,
        settings: LoopSettings,
        tasks: Sequence[Task],
        generators: Sequence[Generator],
        learner: Learner,
        recorder: MetricsRecorder | None = None,
        on_groups: OnGroups | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings = settings
        self._tasks = {task.id: task for task in tasks}
        self._sampler = make_sampler(settings.sampling, tasks, settings.seed)
        self._admission = Admission(
            settings.eta,
            settings.batch_groups,
            settings.max_running,
            first_version=settings.first_version,
            by_batch=settings.by_batch,
        )
        self.ledger = GroupLedger(self._admission, settings.group_size, settings.max_retries, settings.keep_equal)
        self._wake = asyncio.Event()
        self._background = Background(self._wake.set)
        self.fleet = Fleet(
            generators,
            self._background,
            clock,
            self._dispatch,
            settings.limits,
            load_when_empty=settings.by_batch,
            max_groups=settings.max_running,
        )
        self._learner = learner
        self._recorder = recorder or MetricsRecorder()
        self._on_groups = on_groups
        self._clock = clock
        self._began_s = self._step_ended_s = clock()
        self._occupancy = Occupancy("starting", clock())
        self.stats = StepStats(settings.eta)
        self._stopping = False
        self._saved_step: int | None = None
        self._logged: asyncio.Task[None] | None = None
        """Writes the batch that was trained last."""

    @property
    def step(self) -> int:
        """Learner steps done, over restarts."""
        return self._admission.version - self._admission.first_version

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a checkpoint's extra state, before `run`. Raises RunFolderError if it does not fit."""
        self._sampler.restore(state["sampler"])
        self.ledger.restore(state["groups"], self._tasks)
        self._saved_step = self.step

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the learner's own, at this instant (plain JSON values)."""
        return {"sampler": self._sampler.to_json(), "groups": self.ledger.to_json()}

    async def run(self, num_steps: int) -> dict[str, Any]:
        """Train until `num_steps` steps are done in all, or `stop`; returns `status` and "weight_updates", the seconds by
        phase of the latest loads: a long list, which those who ask while the run goes on are spared.

        Raises StarvationError, GeneratorDiedError (no generator left), InvariantError, or what the learner raises.
        """
        version = self.ledger.version
        self._admission.final_version = self._admission.first_version + num_steps
        try:
            await self.fleet.start(await self._bounded(self._learner.publish(version)), version)
            self._step_ended_s = self._clock()
            while self.step < num_steps and (batch := await self._next_batch()):
                await self._train(batch)
            self._background.raise_error()
            if self._saved_step != self.step:
                await self._save()
            if self._logged is not None:
                await self._logged
        finally:
            await self._background.close()
        return self.status() | {"weight_updates": list(self.fleet.load_seconds)}

    def stop(self) -> None:
        """End after the step in progress, with a checkpoint. What is in flight is reissued on resume."""
        self._stopping = True
        self._wake.set()

    def status(self) -> dict[str, Any]:
        """Where the run stands: plain values, safe to ask for from another thread."""
        now_s = self._clock()
        recent = self.recent()
        return {
            "step": self.step,
            "num_steps": (self._admission.final_version or 0) - self._admission.first_version,
            "version": self.ledger.version,
            "versions": {slot.generator.name: slot.version for slot in self.fleet.slots},
            "counts": self.ledger.counts.as_dict(),
            "last": recent[-1] if recent else {},
            "staleness_histogram": dict(sorted(self.stats.staleness.copy().items())),
            "waits": {"learner": self._occupancy.seconds(now_s)}
            | {slot.generator.name: slot.occupancy.seconds(now_s) for slot in self.fleet.slots},
            "doing": {"learner": self._occupancy.activity}
            | {slot.generator.name: slot.occupancy.activity for slot in self.fleet.slots},
            "idle_frac": self._idle(now_s),
            "num_generator_faults": sum(slot.policy.num_faults for slot in self.fleet.slots),
            "stopped": self._stopping,
        }

    def recent(self) -> list[dict[str, float]]:
        """The latest steps' metrics, oldest first."""
        return list(self._recorder.recent)

    def _dispatch(self) -> None:
        """Give out groups while admission allows: those that wait for a second try first, then new ones."""
        while not self._stopping and (slot := self.fleet.pick(self._admission.capacity)) is not None:
            record = self.ledger.next_waiting() or self.ledger.submit(self._sampler.next())
            self.ledger.dispatch(record, slot.version)
            self._background.start(self._run_group(slot, self.fleet.reserve(slot), record))

    async def _run_group(self, slot: Slot, life: int, record: GroupRecord) -> None:
        group = await self.fleet.run_group(slot, life, record.id, record.task, self.settings.group_size)
        if group is None:
            state = self.ledger.generator_died(record)
            log.warning("group %d is %s after %d deaths of its generators", record.id, state, record.num_deaths)
        else:
            self._check_answer(group, record)
            self.stats.add_finished(group)
            outcome = self.ledger.finish(group)
            if outcome is not GroupState.FAILED:
                self._sampler.report(record.task, has_signal(group))
            if outcome is not GroupState.READY:
                await self._report([group], outcome, self.step)
        self._dispatch()
        self._wake.set()

    async def _next_batch(self) -> list[Group] | None:
        """Wait for a full batch; None once the run is to stop. Raises what a background task raised."""
        self._occupancy.enter(WAITING, self._clock())
        while True:
            self._wake.clear()
            self._background.raise_error()
            if self._stopping:
                return None
            if (batch := self.ledger.next_batch()) is not None:
                return batch
            await self._wake.wait()

    async def _train(self, batch: list[Group]) -> None:
        """One step: train, count, publish, record, and a checkpoint when it is due."""
        began_s = self._clock()
        self._occupancy.enter("training", began_s)
        metrics = learner_metrics(await self._bounded(self._learner.train(batch)))
        metrics |= self.stats.add_trained(batch, self.ledger.version)
        self.ledger.trained(batch)
        trained_s = self._clock()
        self._occupancy.enter("publishing", trained_s)
        version = self.ledger.version
        self.fleet.publish(await self._bounded(self._learner.publish(version)), version)
        self._dispatch()
        now_s = self._clock()
        metrics |= {"train_s": trained_s - began_s, "publish_s": now_s - trained_s}
        self._record(metrics, now_s)
        if self.step % self.settings.checkpoint_every == 0:
            await self._save()
        # Beside the next step, but never more than one batch behind: what waits for the log is bounded.
        if self._logged is not None:
            await self._logged
        self._logged = self._background.start(self._report(batch, GroupState.TRAINED, self.step))

    async def _save(self) -> None:
        if not self.settings.checkpoint_root:
            return
        self._occupancy.enter("saving", self._clock())
        self._saved_step = self.step
        path = Path(self.settings.checkpoint_root) / f"step-{self.step:06d}"
        await self._bounded(self._learner.save(str(path), self.state()))
        log.info("checkpoint %s written", path)

    async def _bounded(self, call: Awaitable[T]) -> T:
        """A learner's answer, or TimeoutError."""
        return await asyncio.wait_for(call, self.settings.limits.learner_s)

    async def _report(self, groups: list[Group], outcome: GroupState, step: int) -> None:
        """Hand groups to the trajectory log in a thread: it encodes pictures."""
        if self._on_groups is not None:
            for first in range(0, len(groups), REPORTED_AT_ONCE):
                await asyncio.to_thread(self._on_groups, groups[first : first + REPORTED_AT_ONCE], outcome.value, step)

    def _record(self, metrics: dict[str, float], now_s: float) -> None:
        step_s = now_s - self._step_ended_s
        self._step_ended_s = now_s
        for seconds in self.fleet.take_new_loads():
            self.stats.add_load(seconds)
        idle = self._idle(now_s)
        record = {"step": float(self.step), "version": float(self.ledger.version), "time_s": now_s - self._began_s}
        record |= {name: float(value) for name, value in self.ledger.counts.as_dict().items()}
        record |= {"step_s": step_s, "idle_generator": idle["generator"], "idle_learner": idle["learner"]}
        record["num_weight_updates"] = float(self.fleet.num_loads)
        record["num_generator_faults"] = float(sum(slot.policy.num_faults for slot in self.fleet.slots))
        self._recorder.append(record | metrics | self.stats.close_step(step_s))

    def _idle(self, now_s: float) -> dict[str, float]:
        return {
            "generator": self.fleet.idle_fraction(),
            "learner": self._occupancy.idle_fraction(LEARNER_BUSY, now_s),
        }

    @staticmethod
    def _check_answer(group: Group, record: GroupRecord) -> None:
        if group.id != record.id or any(episode.task.id != record.task.id for episode in group.episodes):
            raise InvariantError(f"group {record.id} of task {record.task.id!r} came back as {group.id}")
