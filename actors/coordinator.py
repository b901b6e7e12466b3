"""The coordinator actor: runs the asynchronous loop over generator and learner actors.

A thin shell around `flow.loop`. Invariant: `status` and `stop` answer while the loop runs, from a concurrency group
of their own. One per run, made by the supervisor; it dies with its driver.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.handles import Handle, RayGenerator, RayLearner
from medvista_ray.collector import spare_live_objects
from medvista_ray.config import TrainConfig
from medvista_ray.errors import NotReadyError
from medvista_ray.flow.loop import LoopSettings, TrainingLoop
from medvista_ray.flow.recorder import MetricsRecorder, tensorboard_writer
from medvista_ray.reports.provenance import Provenance
from medvista_ray.reports.trajectory import TrajectoryLog
from medvista_ray.tools.catalog import load_tools
from medvista_ray.types import Group, Task

ARM = "train"
"""Under which the trajectory log keeps training episodes."""


# Ray's annotations know no concurrency groups.
@ray.remote(concurrency_groups={"control": 4}, num_cpus=0)  # pyright: ignore[reportCallIssue, reportUntypedClassDecorator]
class CoordinatorActor:
    """Drives one run: checkpoints, metrics.jsonl, tensorboard/ and episodes/ go to `run_dir`."""

    def __init__(
        self,
        config: TrainConfig,
        tasks: Sequence[Task],
        generators: Mapping[str, Handle],
        learner: Handle,
        run_dir: str,
        first_version: int = 1,
        resume: dict[str, Any] | None = None,
    ) -> None:
        """`generators` by name. `first_version` names the learner's present weights: above any published so far.
        `resume`: the extra state of the checkpoint that the learner has loaded; its version then counts."""
        logging.basicConfig(level=logging.INFO)
        folder = Path(run_dir)
        provenance = Provenance.of(load_tools(config.tools.names), config.rollout.max_calls, config.rollout.tool_prompt)
        self._log = TrajectoryLog(folder / "episodes", provenance=provenance)
        self._loop = TrainingLoop(
            LoopSettings.of(config, folder / "checkpoints", first_version),
            tasks,
            [RayGenerator(name, actor) for name, actor in generators.items()],
            RayLearner(learner),
            MetricsRecorder(folder, tensorboard_writer(folder / "tensorboard")),
            self._log_groups,
        )
        if resume is not None:
            self._loop.restore(resume)
        self._events: asyncio.AbstractEventLoop | None = None
        spare_live_objects()

    def __repr__(self) -> str:
        return "Coordinator"

    async def run(self, num_steps: int) -> dict[str, Any]:
        """Train until `num_steps` steps are done in all, or `stop`. Returns the final `status`.

        Raises StarvationError, GeneratorDiedError (none left), InvariantError, or what the learner raised.
        """
        self._events = asyncio.get_running_loop()
        try:
            return await self._loop.run(num_steps)
        finally:
            self._log.close()

    @ray.method(concurrency_group="control")
    async def status(self) -> dict[str, Any]:
        """Where the run stands (see `TrainingLoop.status`)."""
        return self._loop.status()

    @ray.method(concurrency_group="control")
    async def records(self, after_step: int = 0) -> list[dict[str, float]]:
        """The latest steps' metrics whose step is above `after_step`."""
        return [record for record in self._loop.recent() if record["step"] > after_step]

    @ray.method(concurrency_group="control")
    async def stop(self) -> None:
        """Finish the step in progress, write a checkpoint, and let `run` return."""
        # The control group has an event loop of its own.
        if self._events is None:
            self._loop.stop()
        else:
            self._events.call_soon_threadsafe(self._loop.stop)

    @ray.method(concurrency_group="control")
    async def join(self, name: str, actor: Handle) -> None:
        """A generator joins the run: it gets work once it serves the newest version. Raises NotReadyError, ConfigError."""

        async def add() -> None:
            self._loop.fleet.add(RayGenerator(name, actor))

        await self._in_loop(add())

    @ray.method(concurrency_group="control")
    async def leave(self, name: str) -> None:
        """A generator leaves the run: returns when its last group is back. Raises NotReadyError, ConfigError."""
        await self._in_loop(self._loop.fleet.remove(name))

    async def _in_loop(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` where the training loop runs: the control group has an event loop of its own."""
        if self._events is None:
            work.close()
            raise NotReadyError("generators join and leave while the loop runs; it has not begun")
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._events))

    def _log_groups(self, groups: Sequence[Group], outcome: str, step: int) -> None:
        """Called in a thread, with every group that was trained, filtered or failed."""
        for group in groups:
            self._log.extend(group.episodes, arm=ARM, step=step)
