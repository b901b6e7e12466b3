"""Checkpoints of a learner of several processes: each writes its shards (torch.distributed.checkpoint).

A folder: an ordinary Hugging Face model folder, shards/ (weights and optimiser; may be read by another number of
processes), random-<rank>.pt and extra.json. Invariant: a folder under its final name is complete. Every process calls
these functions at the same time. Called by the learner.
"""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

from medvista_ray.errors import RunFolderError
from medvista_ray.models.policy import Policy
from trainers.checkpoint import EXTRA_FILE, copy_side_files, random_state, replace_folder, set_random_state
from trainers.grpo import GrpoTrainer
from trainers.sharding import kept_whole, process_rank, whole_weights

SHARDS, COUNTER = "shards", "num_updates"


def save_sharded(folder: Path, policy: Policy, trainer: GrpoTrainer, extra: dict[str, Any]) -> None:
    """Write a checkpoint to `folder`, replacing what is there. `extra`: plain JSON values."""
    fresh, stale = folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")
    if process_rank() == 0:
        for path in (fresh, stale):
            shutil.rmtree(path, ignore_errors=True)
        fresh.mkdir(parents=True)
    dist.barrier()
    state_dict_saver.save(_shards(policy, trainer), checkpoint_id=fresh / SHARDS)
    torch.save(random_state(), fresh / f"random-{process_rank()}.pt")
    export_policy(fresh, policy)
    dist.barrier()
    if process_rank() == 0:
        (fresh / EXTRA_FILE).write_text(json.dumps({COUNTER: trainer.num_updates, "extra": extra}))
        if folder.exists():
            folder.rename(stale)
        fresh.rename(folder)
        shutil.rmtree(stale, ignore_errors=True)
    dist.barrier()


def load_sharded(folder: Path, policy: Policy, trainer: GrpoTrainer) -> dict[str, Any]:
    """Restore weights, optimiser and random generators in place, bit for bit with as many processes; returns `extra`.

    With another number of processes, those beyond the old ones take the first one's random generator.
    Raises RunFolderError if the checkpoint is absent, damaged or of another model.
    """
    try:
        shards = _shards(policy, trainer)
        state_dict_loader.load(shards, checkpoint_id=folder / SHARDS)
        set_state_dict(policy.model, trainer.optimizer, model_state_dict=shards["model"], optim_state_dict=shards["optimizer"])
        state = json.loads((folder / EXTRA_FILE).read_text())
        trainer.num_updates = int(state[COUNTER])
        own = folder / f"random-{process_rank()}.pt"
        set_random_state(torch.load(own if own.exists() else folder / "random-0.pt", weights_only=True))
    except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, CheckpointException) as error:
        raise RunFolderError(f"checkpoint {str(folder)!r} cannot be resumed: {error}") from error
    return state["extra"]


def save_sharded_policy(folder: Path, policy: Policy) -> None:
    """Write the whole policy as a Hugging Face folder in place of what is there, atomically; the first process writes."""
    weights = _whole_on_host(policy)
    if process_rank() == 0:
        replace_folder(folder, lambda target: _write_whole(target, policy, weights))


def export_policy(folder: Path, policy: Policy) -> None:
    """Write the whole policy as a Hugging Face folder; every process must call this, the first one writes."""
    weights = _whole_on_host(policy)
    if process_rank() == 0:
        _write_whole(folder, policy, weights)


def _whole_on_host(policy: Policy) -> dict[str, torch.Tensor]:
    """All weights, in the first process; the others only take part in gathering them."""
    return {name: tensor.cpu() for name, tensor in kept_whole(whole_weights(policy))}


def _write_whole(folder: Path, policy: Policy, weights: dict[str, torch.Tensor]) -> None:
    policy.model.save_pretrained(folder, state_dict=weights)
    copy_side_files(folder, policy)


def _shards(policy: Policy, trainer: GrpoTrainer) -> dict[str, Any]:
    """What is saved in shards; as a template it also says what to load."""
    model, optimizer = get_state_dict(policy.model, trainer.optimizer)
    return {"model": model, "optimizer": optimizer}
