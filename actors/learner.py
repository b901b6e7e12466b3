"""The learner actor: owns the weights, trains them, publishes every version.

A thin shell around trainers.sft, trainers.grpo, the checkpoints and a weight transport. Invariants: one call changes the
weights at a time; `stats` answers meanwhile; of several processes (actors.learner_group) only the front is called from
outside, and publishes. Called by the driver (cold start, resume) and the coordinator (the loop).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util import get_node_ip_address

from actors.cores import IdleCores, stay_off_engine_cores, use_all_cores
from actors.handles import Handle
from actors.learner_group import LearnerGroup
from actors.weights import SyncClient
from medvista_ray.config import TrainConfig
from medvista_ray.models.adapters import add_adapters, merged_weights
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.models.recomputation import checkpoint_activations
from medvista_ray.types import Episode, Group
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.transport import TRANSPORTS
from trainers.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint, save_policy
from trainers.grpo import GrpoTrainer
from trainers.processes import Store, connect_store, start_group
from trainers.sft import imitate
from trainers.sharded_checkpoint import load_sharded, save_sharded, save_sharded_policy
from trainers.sharding import Forward, kept_whole, prepare, process_rank


# Ray's annotations know no concurrency groups.
@ray.remote(concurrency_groups={"control": 2, "weights": 16})  # pyright: ignore[reportCallIssue, reportUntypedClassDecorator]
class LearnerActor:
    """One learner process."""

    def __init__(self, config: TrainConfig, model_folder: str, run_id: str, peers: Sequence[Handle] = ()) -> None:
        """`model_folder`: the base policy. `run_id` names what the transport leaves on the machine. `peers`: the other
        processes of a learner of several, if this is its front."""
        self._idle_cores = IdleCores(config.learner)
        self._cores = stay_off_engine_cores(config.generator, config.learner.num_threads * config.learner.num_processes)
        torch.set_num_threads(config.learner.num_threads)
        torch.manual_seed(config.seed)
        self._config = config
        self._policy: Policy = load_policy(Path(model_folder), torch.float32)
        if config.policy.lora_rank:
            add_adapters(self._policy, config.policy)
        if config.learner.activation_checkpointing:
            checkpoint_activations(self._policy)
        self._publisher: Any = TRANSPORTS.load(config.weights.transport)(run_id, config.weights, put=ray.put)
        self._trainer: GrpoTrainer | None = None
        self._progress: dict[str, Any] = {"doing": "idle"}
        self._forward: Forward | None = None
        self._group = LearnerGroup(peers)
        self._group.gather(self._join)

    def __repr__(self) -> str:
        return "Learner"

    def ready(self) -> dict[str, Any]:
        """Answers once the policy is loaded: process id, cores and number of weights."""
        num_weights = sum(weight.numel() for weight in self._policy.model.parameters())
        return {"pid": os.getpid(), "cores": self._cores, "num_weights": num_weights}

    def join(self, address: str, port: int, rank: int) -> None:
        """Become process number `rank` of the learner whose front waits at `address`."""
        self._join(connect_store(address, port), rank)

    def sft(self, episodes: Sequence[Episode]) -> list[dict[str, float]]:
        """Cold start on the expert's episodes; the metrics of each update. Call it before the first `train`."""
        return self._group.call("sft", lambda: self._imitate(episodes), episodes)

    def train(self, *groups: Group) -> dict[str, float]:
        """One GRPO step on whole groups; its metrics. One argument each, so that a caller may pass references."""
        return self._group.call("train", lambda: self._grpo().step(list(groups)), *groups)

    def publish(self, version: int) -> str:
        """Publish the trainable weights as `version`; the manifest as JSON (a peer's is empty)."""
        changed = merged_weights(self._policy, self._config.policy.train_vision)
        weights = self._group.call("publish", lambda: list(kept_whole(changed)), version)
        return "" if process_rank() else self._publisher.publish(weights, version).model_dump_json()

    def save(self, path: str, extra: dict[str, Any]) -> None:
        """Write a checkpoint with `extra` (plain JSON values) in it, atomically, and let the oldest go."""
        write = save_sharded if self._forward else save_checkpoint
        self._group.call("save", lambda: write(Path(path), self._policy, self._grpo(), extra), path, extra)
        if process_rank() == 0:
            prune_checkpoints(Path(path).parent, self._config.flow.keep_checkpoints)

    def load(self, path: str) -> dict[str, Any]:
        """Restore a checkpoint; its `extra`. Raises RunFolderError."""
        read = load_sharded if self._forward else load_checkpoint
        return self._group.call("load", lambda: read(Path(path), self._policy, self._grpo()), path)

    def save_policy(self, path: str) -> None:
        """Write the weights alone, as a Hugging Face folder."""
        write = save_sharded_policy if self._forward else save_policy
        self._group.call("save_policy", lambda: write(Path(path), self._policy), path)

    @ray.method(concurrency_group="control")
    def stats(self) -> dict[str, Any]:
        """Progress of a cold start, number of updates; answers while the learner works."""
        return {"num_updates": self._trainer.num_updates if self._trainer else 0, **self._progress}

    @ray.method(concurrency_group="control")
    def use_idle_cores(self) -> None:
        """The engines have nothing to do until the cold start has ended: it goes on with their cores too."""
        self._idle_cores.free()

    @ray.method(concurrency_group="weights")
    def stored_weights(self, version: int) -> list[Any]:
        """References of a version's buckets in the object store; answers while the learner works."""
        return self._publisher.stored(version)

    @ray.method(concurrency_group="weights")
    def send_weights(self, manifest: str, receiver: str, life: int, generator: Handle) -> None:
        """Send a version to a generator's engine (GPU transports); answers while the learner works."""
        self._publisher.send(Manifest.from_json(manifest), receiver, life, lambda: SyncClient(generator))

    def close(self) -> None:
        """Remove the published versions from the machine and leave the process group, if there is one."""
        self._publisher.close()
        self._group.close()

    def _join(self, store: Store, rank: int) -> None:
        """Meet the other processes and spread the policy over all, once for cold start and loop."""
        learner = self._config.learner
        start_group(store, rank, learner.num_processes, learner.num_gpus > 0, get_node_ip_address())
        self._forward = prepare(self._policy, self._config)

    def _imitate(self, episodes: Sequence[Episode]) -> list[dict[str, float]]:
        with use_all_cores():
            return imitate(self._policy, episodes, self._config, self._note_progress, self._forward)

    def _grpo(self) -> GrpoTrainer:
        """Made at first use, after the cold start: the reference policy of a KL term is the policy then."""
        if self._trainer is None:
            self._trainer = GrpoTrainer(self._policy, self._config, forward=self._forward)
        return self._trainer

    def _note_progress(self, num_done: int, num_total: int, metrics: dict[str, float]) -> None:
        self._progress = {"doing": "sft", "num_done": num_done, "num_total": num_total, "last": metrics}
        self._idle_cores.take()
