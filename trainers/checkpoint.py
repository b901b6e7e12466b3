"""Checkpoints: everything that a run needs to go on as if it had never stopped.

A checkpoint is a folder: an ordinary Hugging Face model folder (weights in safetensors, configuration, tokenizer) plus
training_state.pt (optimiser, random generators; read with weights_only, so nothing in it is executed) and extra.json.
Invariant: a folder under its final name is complete, because it is written beside it and renamed. Called by the
learner.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from medvista_ray.errors import RunFolderError
from medvista_ray.models.adapters import has_adapters, merged_weights
from medvista_ray.models.policy import Policy

STATE_FILE = "training_state.pt"
EXTRA_FILE = "extra.json"
# What a model folder holds beside the weights; copied from where the policy came from.
SIDE_FILES = ("*.json", "*.txt", "*.jinja", "*.model")


class Stateful(Protocol):
    """A trainer, as seen from here."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def save_policy(folder: Path, policy: Policy) -> None:
    """Write `policy` as a Hugging Face folder, which transformers and vLLM load. Replaces what is there, atomically."""
    replace_folder(folder, lambda target: _write_policy(target, policy))


def save_checkpoint(folder: Path, policy: Policy, trainer: Stateful, extra: dict[str, Any]) -> None:
    """Write a checkpoint to `folder`, replacing what is there, atomically. `extra`: plain JSON values."""

    def write(target: Path) -> None:
        _write_policy(target, policy)
        state = {"trainer": trainer.state_dict(), "random": random_state(), "adapted": _adapted_state(policy)}
        torch.save(state, target / STATE_FILE)
        (target / EXTRA_FILE).write_text(json.dumps(extra))

    replace_folder(folder, write)


def load_checkpoint(folder: Path, policy: Policy, trainer: Stateful) -> dict[str, Any]:
    """Restore weights, optimiser and this process's random generators in place, bit for bit; returns `extra`.

    Raises RunFolderError if the checkpoint is absent, damaged or of another model.
    """
    try:
        state: dict[str, Any] = torch.load(folder / STATE_FILE, weights_only=True, map_location="cpu")
        extra: dict[str, Any] = json.loads((folder / EXTRA_FILE).read_text())
        weights = state.get("adapted")
        if not weights or not has_adapters(policy):
            weights = type(policy.model).from_pretrained(folder, dtype=policy.model.dtype).state_dict()
        policy.model.load_state_dict(weights)
        trainer.load_state_dict(state["trainer"])
        set_random_state(state["random"])
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
        raise RunFolderError(f"checkpoint {str(folder)!r} cannot be resumed: {error}") from error
    return extra


def latest_checkpoint(root: Path) -> Path | None:
    """The checkpoint of the last step among the folders `root`/step-<number>, or None."""
    return next(reversed(_checkpoints(root)), None)


def prune_checkpoints(root: Path, num_kept: int) -> None:
    """Remove all complete checkpoints under `root` but those of the last `num_kept` steps."""
    for folder in _checkpoints(root)[:-num_kept]:
        stale = folder.with_name(f".{folder.name}.old-{os.getpid()}")  # what is half removed must not look complete
        folder.rename(stale)
        shutil.rmtree(stale, ignore_errors=True)


def _checkpoints(root: Path) -> list[Path]:
    """Complete ones, oldest step first."""
    found = [path for path in root.glob("step-*") if path.name[5:].isdigit() and (path / EXTRA_FILE).is_file()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def checkpoint_folder(root: Path, step: int) -> Path:
    """Where the checkpoint of `step` goes."""
    return root / f"step-{step:06d}"


def _write_policy(target: Path, policy: Policy) -> None:
    merged = dict(merged_weights(policy)) if has_adapters(policy) else None
    policy.model.save_pretrained(target, state_dict=merged)
    copy_side_files(target, policy)


def _adapted_state(policy: Policy) -> dict[str, torch.Tensor]:
    """With adapters, weights and adapters apart: merged, as the model folder has them, they could not be trained on."""
    return policy.model.state_dict() if has_adapters(policy) else {}


def copy_side_files(target: Path, policy: Policy) -> None:
    """Complete a model folder: tokenizer, picture processor and what else lay beside the weights."""
    for pattern in SIDE_FILES:
        for path in policy.path.glob(pattern):
            if not (target / path.name).exists() and not path.name.endswith(".safetensors.index.json"):
                shutil.copyfile(path, target / path.name)


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a new folder beside `folder`, then put it in its place; a failure leaves `folder` as it was."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.new-{os.getpid()}")
    stale = folder.with_name(f".{folder.name}.old-{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        fresh.mkdir()
        write(fresh)
        _flush(fresh)
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(stale, ignore_errors=True)


def _flush(folder: Path) -> None:
    """Have the disk hold the files before they get their final name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def random_state() -> dict[str, Any]:
    """Of this process's generators: torch, numpy, python; tensors and plain values only."""
    numpy_state: Any = np.random.get_state(legacy=False)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": {
            **numpy_state,
            "state": {"key": numpy_state["state"]["key"].tolist(), "pos": numpy_state["state"]["pos"]},
        },
        "python": random.getstate(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    """Restore what `random_state` gave."""
    torch.set_rng_state(state["torch"])
    inner = state["numpy"]["state"]
    np.random.set_state({**state["numpy"], "state": {**inner, "key": np.array(inner["key"], dtype=np.uint32)}})
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
