"""Who may write in a run's folder, and what a resumed run goes on with."""

from __future__ import annotations

import asyncio
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray import serve

import actors.job as job_module
from actors.job import FIRST_RL_VERSION, SFT_VERSION, TrainingJob
from medvista_ray.config import TrainConfig
from medvista_ray.errors import RunFolderError
from medvista_ray.run_folder import open_run_folder
from trainers.checkpoint import EXTRA_FILE, checkpoint_folder


def config(path: Path, **sections: Any) -> TrainConfig:
    return TrainConfig.model_validate({"output_dir": path, "evaluation": {"arms": ()}, **sections})


def test_a_folder_without_a_run_is_not_resumed(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no run to resume"), open_run_folder(config(tmp_path / "new"), resume=True):
        pass


def test_a_used_folder_is_not_started_in_again(tmp_path: Path) -> None:
    with open_run_folder(config(tmp_path), resume=False) as folder:
        folder.finish("sft", fact=1)
    with pytest.raises(RunFolderError, match="holds a run already"), open_run_folder(config(tmp_path), resume=False):
        pass
    with open_run_folder(config(tmp_path), resume=True) as folder:
        assert folder.is_done("sft")
        assert folder.state["fact"] == 1


def test_a_run_is_resumed_with_its_own_configuration_only(tmp_path: Path) -> None:
    with open_run_folder(config(tmp_path, seed=1), resume=False):
        pass
    with pytest.raises(RunFolderError, match="seed = 2 differs from 1"), open_run_folder(config(tmp_path, seed=2), resume=True):
        pass


def test_one_process_at_a_time_holds_the_folder(tmp_path: Path) -> None:
    first, second = open_run_folder(config(tmp_path), resume=False), open_run_folder(config(tmp_path), resume=True)
    with first, pytest.raises(RunFolderError, match="in use by another run"), second:
        pass
    with open_run_folder(config(tmp_path), resume=True):
        pass


class Remote:
    """An actor whose every method notes its call in `calls` and answers from `answers`."""

    def __init__(self, calls: list[tuple[str, Any]], **answers: Any) -> None:
        self._calls, self._answers = calls, answers

    def __getattr__(self, name: str) -> Any:
        async def answer(*arguments: Any) -> Any:
            self._calls.append((name, arguments))
            return self._answers.get(name)

        return SimpleNamespace(remote=answer)


def job(
    folder: Any, settings: TrainConfig, calls: list[tuple[str, Any]], state: Any, monkeypatch: pytest.MonkeyPatch
) -> TrainingJob:
    """A job whose actors only note what they are asked; the loop ends at once, as if all steps were done."""

    async def follow(*_: Any) -> dict[str, Any]:
        status = {"step": settings.grpo.num_steps, "version": 9, "counts": {}, "staleness_histogram": {}, "weight_updates": []}
        return status | {"idle_frac": {}, "num_generator_faults": 0}

    def note(name: str, answer: Any = None) -> Any:
        return lambda *arguments, **_: (calls.append((name, arguments)), answer)[1]

    learner = Remote(calls, load=state, publish="manifest")
    supervisor = SimpleNamespace(
        learner=learner, generators={}, coordinator=None, start_learner=note("start_learner", learner),
        start_generators=note("start_generators"), start_coordinator=note("start_coordinator"),
        wait_ready=note("wait_ready"), shutdown=note("shutdown"),
    )  # fmt: skip
    source = SimpleNamespace(tasks=lambda _: [])
    for name, value in {"Supervisor": lambda _: supervisor, "load_source": lambda _: source, "follow": follow}.items():
        monkeypatch.setattr(job_module, name, value)
    monkeypatch.setattr(ray, "shutdown", note("ray.shutdown"))
    monkeypatch.setattr(serve, "status", lambda: SimpleNamespace(applications={}))
    progress: Any = SimpleNamespace(phase=lambda _: nullcontext(), note=lambda _: None, advance=None)
    return TrainingJob(settings, folder, "run", progress, note("deploy", 0.0), note("client"), note("undeploy"))


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_a_resumed_run_goes_on_where_it_stopped(tmp_path: Path, has_checkpoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, calls, extra = config(tmp_path), list[tuple[str, Any]](), {"groups": "of step 2"}
    with open_run_folder(settings, resume=False) as folder:
        folder.finish("sft")
    for step, is_complete in ((1, True), (2, True), (3, False)):
        path = checkpoint_folder(folder.checkpoints, step)
        if has_checkpoint:
            path.mkdir(parents=True)
            if is_complete:
                (path / EXTRA_FILE).write_text(json.dumps(extra))
    with open_run_folder(settings, resume=True) as folder:
        assert asyncio.run(job(folder, settings, calls, extra, monkeypatch).run())
        assert folder.is_done("rl")
    names = [name for name, _ in calls]
    assert "sft" not in names, "the cold start was done"
    assert calls[0][0] == "start_learner"
    assert calls[0][1][0] == str(folder.sft_policy)
    loaded = [arguments for name, arguments in calls if name == "load"]
    assert loaded == ([(str(checkpoint_folder(folder.checkpoints, 2)),)] if has_checkpoint else [])
    ((_, run_dir, version, state),) = [arguments for name, arguments in calls if name == "start_coordinator"]
    assert (run_dir, version, state) == (str(tmp_path), FIRST_RL_VERSION, extra if has_checkpoint else None)
    assert [arguments[0] for name, arguments in calls if name == "publish"] == [SFT_VERSION, 10]
    assert names[-3:] == ["shutdown", "undeploy", "ray.shutdown"]
