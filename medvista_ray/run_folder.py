"""The folder of a run: who may write in it, what is done, and where things lie.

Invariants: one process at a time holds the folder; a new run never starts in a used folder; a resumed run has the
configuration that the folder was made with. Called by the training job.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from medvista_ray.config import TrainConfig, load_config
from medvista_ray.errors import RunFolderError
from medvista_ray.reports.files import write_atomic
from medvista_ray.reports.summary import CONFIG_NAME

STATE_NAME = "state.json"
LOCK_NAME = "run.lock"


class RunFolder:
    """An opened run folder."""

    def __init__(self, path: Path, state: dict[str, Any]) -> None:
        self.path = path
        self.state = state
        """Plain JSON values that a resumed run needs: phases done, facts counted so far."""

    @property
    def sft_policy(self) -> Path:
        """The policy after the cold start."""
        return self.path / "policies" / "sft"

    @property
    def rl_policy(self) -> Path:
        """The policy after reinforcement learning."""
        return self.path / "policies" / "rl"

    @property
    def checkpoints(self) -> Path:
        """Where reinforcement learning keeps its checkpoints."""
        return self.path / "checkpoints"

    def is_done(self, phase: str) -> bool:
        """Whether a phase was finished, now or before a resume."""
        return phase in self.state.setdefault("done", [])

    def finish(self, phase: str, **facts: Any) -> None:
        """Note that a phase is finished, with what must survive a restart."""
        self.state.setdefault("done", []).append(phase)
        self.state |= facts
        self.save()

    def save(self) -> None:
        """Write the state, atomically."""
        write_atomic(self.path / STATE_NAME, (json.dumps(self.state, indent=2) + "\n").encode())


@contextmanager
def open_run_folder(config: TrainConfig, resume: bool) -> Generator[RunFolder]:
    """Hold the run's folder: a new one, or with `resume` the one of an interrupted run.

    Raises RunFolderError if it is used, held by another process, absent, finished, or made with another configuration.
    """
    path = config.output_dir
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK_NAME).open("a")
    except OSError as error:
        raise RunFolderError(f"output_dir = {str(path)!r} cannot be written: {error.strerror}") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(f"output_dir = {str(path)!r} is in use by another run") from error
        yield _opened(path, config, resume)


def _opened(path: Path, config: TrainConfig, resume: bool) -> RunFolder:
    used = (path / CONFIG_NAME).exists()
    if resume and not used:
        raise RunFolderError(f"output_dir = {str(path)!r} holds no run to resume; leave --resume out to start one")
    if used and not resume:
        raise RunFolderError(f"output_dir = {str(path)!r} holds a run already; continue it with --resume or name another")
    if not used:
        write_atomic(path / CONFIG_NAME, yaml.safe_dump(_plain(config), sort_keys=False).encode())
        return RunFolder(path, {})
    _same_config(path, config)
    state_path = path / STATE_NAME
    return RunFolder(path, json.loads(state_path.read_text()) if state_path.exists() else {})


def _same_config(path: Path, config: TrainConfig) -> None:
    # Through the model: what the folder's file does not say has its default.
    before, now = _plain(load_config(path / CONFIG_NAME)), _plain(config)
    for section, value in now.items():
        if section != "output_dir" and before.get(section) != value:
            raise RunFolderError(
                f"{section} = {value!r} differs from {before.get(section)!r}, with which {str(path)!r} was started; "
                f"a run is resumed with its own configuration (--config {path / CONFIG_NAME})"
            )


def _plain(config: TrainConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")
