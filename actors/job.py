"""The phases of a run over its actors: start, expert, cold start, RL, and the evaluation arms in between.

Invariant: a phase that is noted as done in the run folder is never done again, so that `--resume` continues; whatever
happens, actors, replicas and published weights are cleaned up. Composed by `medvista_ray.main_job`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import ray
from ray import serve

from actors.arms import Arms
from actors.follow import all_stats, follow
from actors.supervisor import Supervisor
from medvista_ray.config import TrainConfig
from medvista_ray.errors import RunFolderError
from medvista_ray.models.policy import load_inputs, resolve_policy
from medvista_ray.reports.progress import RunProgress
from medvista_ray.run_facts import add_loop_status, engine_processes
from medvista_ray.run_folder import RunFolder
from medvista_ray.tasks.source import load_source
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Episode, Split
from trainers.checkpoint import latest_checkpoint
from trainers.cold_start import collect_trajectories

SFT_VERSION = 1
"""Version of the policy after the cold start; engines come up with version 0."""
FIRST_RL_VERSION = 2


class TrainingJob:
    """One run. `deploy`, `make_client` and `undeploy` bring the tools in, wherever they are served."""

    def __init__(
        self, config: TrainConfig, folder: RunFolder, run_id: str, progress: RunProgress,
        deploy: Callable[[], float], make_client: Callable[[], ToolClient], undeploy: Callable[[], None],
    ) -> None:  # fmt: skip
        self._config, self._folder, self._run_id, self._progress = config, folder, run_id, progress
        self._deploy, self._make_client, self._undeploy = deploy, make_client, undeploy
        self._supervisor = Supervisor(config)
        self._source = load_source(config.bench)
        self._arms = Arms(config, folder, progress, self._supervisor, self._source)
        self._is_deployed = self.stopping = False

    def stop(self) -> None:
        """Finish the step in progress (or the phase), write a checkpoint, and end."""
        self.stopping = True
        self._progress.note("stopping after the step in progress ...")
        if self._supervisor.coordinator is not None:
            self._supervisor.coordinator.stop.remote()

    async def run(self) -> bool:
        """All phases that are not done yet; False if the run was stopped before the end."""
        try:
            for phase in (self._start, self._cold_start, self._evaluate_sft, self._learn, self._finish):
                if self.stopping:
                    return False
                await phase()
            return not self.stopping
        finally:
            await asyncio.to_thread(self._clean_up)

    async def _start(self) -> None:
        """Tools, learner and engines come up side by side; the engines are waited for later."""
        with self._progress.phase("start tools and engines"):
            model = str(self._model_folder())
            self._learner: Any = self._supervisor.start_learner(model, self._run_id)
            self._supervisor.start_generators(model, self._make_client)
            self._is_deployed = True
            await asyncio.to_thread(self._deploy)
            if self._folder.is_done("sft"):
                await asyncio.to_thread(self._supervisor.wait_ready)

    def _model_folder(self) -> Path:
        """Whose weights the actors start with: those of the last phase that is done."""
        for phase, path in (("rl", self._folder.rl_policy), ("sft", self._folder.sft_policy)):
            if self._folder.is_done(phase):
                return path
        return resolve_policy(self._config.policy)

    async def _cold_start(self) -> None:
        """The expert plays while the engines start; the learner imitates while the base is evaluated."""
        if self._folder.is_done("sft"):
            return
        with self._progress.phase("expert trajectories"):
            episodes = await self._expert()
            await asyncio.to_thread(self._supervisor.wait_ready)
        imitation = self._learner.sft.remote(episodes)
        await self._arms.evaluate("no_tools", with_tools=False)
        await self._arms.evaluate("naive", with_tools=True)
        await self._learner.use_idle_cores.remote()
        with self._progress.phase("cold start (SFT)"):
            history = await imitation
            await self._learner.save_policy.remote(str(self._folder.sft_policy))
        self._folder.finish("sft", sft_loss=[step["loss"] for step in history])

    async def _expert(self) -> list[Episode]:
        tasks = self._source.tasks(Split.TRAIN)[: self._config.expert.num_trajectories]
        inputs = load_inputs(self._model_folder())
        with closing(self._make_client()) as client:
            found = await collect_trajectories(tasks, self._source, client, inputs, self._config, self._progress.advance)
        self._progress.note(found.describe())
        if not found.kept:
            raise RunFolderError("the expert brought no right trajectory home; see run.log for the tools' errors")
        return found.kept

    async def _evaluate_sft(self) -> None:
        if not self._folder.is_done("rl"):
            await self._arms.load(SFT_VERSION)
            await self._arms.evaluate("sft", with_tools=True)

    async def _learn(self) -> None:
        """The asynchronous loop, in the coordinator."""
        if self._folder.is_done("rl"):
            return
        with self._progress.phase("reinforcement learning"):
            checkpoint = latest_checkpoint(self._folder.checkpoints)
            state = await self._learner.load.remote(str(checkpoint)) if checkpoint else None
            tasks = list(self._source.tasks(Split.TRAIN))
            self._supervisor.start_coordinator(tasks, str(self._folder.path), FIRST_RL_VERSION, state)
            status = await follow(self._supervisor.coordinator, self._config.grpo.num_steps, self._progress)
            add_loop_status(self._folder.state, status)
        if status["step"] < self._config.grpo.num_steps:
            self._folder.save()
            self.stopping = True
            return
        await self._learner.save_policy.remote(str(self._folder.rl_policy))
        self._folder.finish("rl", version=status["version"])

    async def _finish(self) -> None:
        await self._arms.load(self._folder.state["version"] + 1)
        await self._arms.evaluate("rl", with_tools=True)
        status = await asyncio.to_thread(serve.status)
        self._folder.state["applications"] = {name: str(app.status) for name, app in status.applications.items()}
        self._folder.state["engines"] = engine_processes(await all_stats(self._supervisor.generators))

    def _clean_up(self) -> None:
        self._supervisor.shutdown()
        try:
            if self._is_deployed:
                self._undeploy()
        finally:
            ray.shutdown()
