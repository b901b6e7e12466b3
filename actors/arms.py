"""The evaluation arms of a run: which weights, with or without tools, once per run folder.

Invariant: an arm that is noted as done is not played again. Called by `actors.job`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from actors.evaluator import evaluate
from actors.supervisor import Supervisor
from medvista_ray.config import TrainConfig
from medvista_ray.reports.progress import RunProgress
from medvista_ray.reports.provenance import Provenance
from medvista_ray.reports.summary import EPISODES_NAME
from medvista_ray.reports.trajectory import TrajectoryLog
from medvista_ray.run_folder import RunFolder
from medvista_ray.tasks.source import TaskSource
from medvista_ray.tools.catalog import load_tools
from medvista_ray.types import Split


class Arms:
    """Evaluates the engines' present weights on the test subjects and logs the episodes."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, progress: RunProgress, supervisor: Supervisor, source: TaskSource
    ) -> None:
        self._config = config
        self._folder = folder
        self._progress = progress
        self._supervisor = supervisor
        self._source = source
        self._manifest: str | None = None

    async def load(self, version: int) -> None:
        """Publish the learner's weights as `version` and load them into every engine."""
        learner: Any = self._supervisor.learner
        self._manifest = await learner.publish.remote(version)
        generators = self._supervisor.generators.values()
        await asyncio.gather(*(actor.load_version.remote(self._manifest) for actor in generators))

    async def evaluate(self, arm: str, with_tools: bool) -> None:
        """One arm, unless it is switched off or done."""
        settings = self._config.evaluation
        if arm not in settings.arms or self._folder.is_done(f"evaluate {arm}"):
            return
        with self._progress.phase(f"evaluate {arm}"):
            episodes = await evaluate(
                list(self._supervisor.generators.values()),
                self._source.tasks(Split.TEST),
                with_tools=with_tools,
                temperature=settings.temperature,
                concurrency=settings.concurrency,
                manifest=self._manifest,
                progress=self._progress.advance,
            )
            specs = load_tools(self._config.tools.names) if with_tools else ()
            rollout = self._config.rollout
            provenance = Provenance.of(specs, rollout.max_calls, rollout.tool_prompt)
            log = TrajectoryLog(self._folder.path / EPISODES_NAME, provenance=provenance)
            for episode in episodes:
                log.append(episode, arm=arm, step=None)
            log.close()
        accuracy = sum(episode.correct for episode in episodes) / len(episodes)
        self._progress.note(f"accuracy {arm}: {accuracy:.3f} on {len(episodes)} test tasks")
        self._folder.finish(f"evaluate {arm}")
