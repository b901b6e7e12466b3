"""The training job, composed: tools, engines, learner, cold start, asynchronous RL, evaluation, report.

The one place where library, trainers, actors and serve_apps meet; all of them are imported inside functions, so that a
wrong configuration is told before anything heavy is loaded. Called by `medvista_ray.train` and `medvista_ray.evaluate`.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import time
import uuid
from typing import Protocol

from medvista_ray.allocator import allocator_environment
from medvista_ray.assets import asset_dir, catalog
from medvista_ray.config import TrainConfig
from medvista_ray.reports.html import write_report
from medvista_ray.reports.memory import MARKER_NAME, PeakMemory
from medvista_ray.reports.progress import RunProgress
from medvista_ray.reports.summary import SourceCredit, build_summary, write_summary
from medvista_ray.reports.view import render_summary
from medvista_ray.run_facts import run_facts
from medvista_ray.run_folder import RunFolder, open_run_folder
from medvista_ray.tools.catalog import load_tools


class Job(Protocol):
    """What is run here (`actors.job.TrainingJob`)."""

    stopping: bool

    def stop(self) -> None:
        """Ask it to end after the step in progress."""
        ...

    async def run(self) -> bool:
        """Whether it got to its end."""
        ...


def run_training(config: TrainConfig, resume: bool = False) -> None:
    """Train, evaluate and report. Raises UserError for what the user can mend."""
    check_before_start(config)
    with open_run_folder(config, resume) as folder:
        _log_to(folder)
        _run(config, folder)


def run_evaluation(config: TrainConfig) -> None:
    """Evaluate the policies of a run's folder anew and rewrite its summary and report. Raises UserError."""
    check_before_start(config)
    with open_run_folder(config, resume=True) as folder:
        folder.state["done"] = [phase for phase in folder.state.get("done", []) if not phase.startswith("evaluate")]
        _run(config, folder)


def check_before_start(config: TrainConfig) -> None:
    """What would fail late is told early: tools, source, assets, policy. Raises UserError."""
    from medvista_ray.models.policy import resolve_policy
    from medvista_ray.tasks.source import load_source

    config.tools.check_keys(load_tools(config.tools.names))
    load_source(config.bench)
    for asset in catalog():
        if not asset.optional:
            asset_dir(asset.name)
    resolve_policy(config.policy)


def _run(config: TrainConfig, folder: RunFolder) -> None:
    run_id = f"{config.name}-{uuid.uuid4().hex[:8]}"
    started = time.monotonic()
    with RunProgress(config.name, config.grpo.num_steps) as progress, PeakMemory(marker=run_id, interval_s=4.0) as memory:
        job = _job(config, folder, run_id, progress)
        finished = asyncio.run(_with_signals(job))
        if not finished:
            progress.note(f"stopped; continue with --resume --output-dir {folder.path}")
            return
        folder.state["wall_s"] = folder.state.get("wall_s", 0.0) + time.monotonic() - started
        with progress.phase("report"):
            facts = run_facts(folder.state, memory, progress.phases_s, _credits())
            summary = build_summary(folder.path, config, facts)
            write_summary(summary, folder.path)
            report = write_report(folder.path)
    from rich.console import Console

    console = Console()
    console.print(render_summary(summary))
    console.print(f"report: {report}", soft_wrap=True)


def _job(config: TrainConfig, folder: RunFolder, run_id: str, progress: RunProgress) -> Job:
    _set_environment()
    from actors.job import TrainingJob
    from serve_apps.deploy import deploy_tools, make_client, shutdown_tools

    connect_ray(config, run_id)
    # One application per run, so that two runs on one cluster do not share replicas or shut each other's down.
    tools = config.tools.model_copy(update={"app_name": f"{config.tools.app_name}-{run_id}"})
    return TrainingJob(
        config.model_copy(update={"tools": tools}),
        folder,
        run_id,
        progress,
        deploy=lambda: deploy_tools(tools),
        make_client=lambda: make_client(tools),
        undeploy=lambda: shutdown_tools(tools.app_name),
    )


def actor_environment() -> dict[str, str]:
    """Environment variables of the actors and replicas of a run."""
    return allocator_environment() | {
        "OMP_NUM_THREADS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        # Of Serve's controller: at 0.1 s it looks after our 15 deployments for an eighth of a core.
        "RAY_SERVE_CONTROL_LOOP_INTERVAL_S": "1.0",
    }


def connect_ray(config: TrainConfig, run_id: str) -> None:
    """Join the cluster that RAY_ADDRESS names (a submitted job has one), else start a local one on loopback."""
    import ray

    from actors import names

    is_joining = "RAY_ADDRESS" in os.environ
    ray.init(
        address=None if is_joining else "local",
        namespace=names.namespace(config.name),
        runtime_env={"env_vars": actor_environment() | {MARKER_NAME: run_id}},
        log_to_driver=False,
        logging_level=logging.WARNING,
    )
    # The terminal belongs to the run's progress.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _set_environment() -> None:
    """What Ray and Serve read when they are imported, or when they start processes; the user's own values go first."""
    # A submitted job brings its own runtime_env; ours only adds variables to it.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # Ray's 15 would let any other program on the machine starve the engines and the learner.
    os.environ.setdefault("RAY_worker_niceness", "0")
    # What a library's thread asks of Ray after the end must not start a cluster anew.
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
    # Replicas and controller write files of their own.
    os.environ.setdefault("RAY_SERVE_LOG_TO_STDERR", "0")


async def _with_signals(job: Job) -> bool:
    """Run the job; Ctrl-C and SIGTERM ask it to stop, a second one cancels it. True if it finished."""
    task = asyncio.ensure_future(job.run())
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if job.stopping:
            task.cancel()
        else:
            job.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        return await task
    except asyncio.CancelledError:
        return False
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(number)


def _log_to(folder: RunFolder) -> None:
    """What the parts log goes to run.log; the terminal shows progress."""
    handler = logging.FileHandler(folder.path / "run.log")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    root.setLevel(logging.INFO)


def _credits() -> tuple[SourceCredit, ...]:
    return tuple(SourceCredit(name=a.name, licence=a.licence, credit=a.credit) for a in catalog())
