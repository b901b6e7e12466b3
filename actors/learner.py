"""The learner actor: owns the weights, trains them, publishes every version.

A thin shell around trainers.sft, trainers.grpo, trainers.checkpoint and a weight transport. Invariants: one call
changes the weights at a time; `stats` answers meanwhile. Called by the driver (cold start, resume) and the
coordinator (the loop).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from actors.cores import stay_off_engine_cores, use_all_cores
from actors.handles import Handle
from actors.weights import SyncClient
from medvista_ray.config import LearnerConfig, TrainConfig
from medvista_ray.models.adapters import add_adapters, merged_weights
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.models.recomputation import checkpoint_activations
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.types import Episode, Group
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.transport import TRANSPORTS
from trainers.checkpoint import load_checkpoint, prune_checkpoints, save_checkpoint, save_policy
from trainers.grpo import GrpoTrainer
from trainers.sft import run_sft

MAX_THREADS = 4
"""More do not help the products of a small policy."""


# Ray's annotations know no concurrency groups.
@ray.remote(concurrency_groups={"control": 2, "weights": 16})  # pyright: ignore[reportCallIssue, reportUntypedClassDecorator]
class LearnerActor:
    """One learner process."""

    def __init__(self, config: TrainConfig, model_folder: str, run_id: str) -> None:
        """`model_folder`: the base policy. `run_id` names what the transport leaves on the machine."""
        self._cores = stay_off_engine_cores(config.generator, config.learner.num_threads)
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

    def __repr__(self) -> str:
        return "Learner"

    def ready(self) -> dict[str, Any]:
        """Answers once the policy is loaded: process id, cores and number of weights."""
        num_weights = sum(weight.numel() for weight in self._policy.model.parameters())
        return {"pid": os.getpid(), "cores": self._cores, "num_weights": num_weights}

    def sft(self, episodes: Sequence[Episode]) -> list[dict[str, float]]:
        """Cold start on the expert's episodes; the metrics of each update. Call it before the first `train`."""
        with use_all_cores() as num_cores:
            return run_sft(
                self._policy,
                episodes,
                self._config.sft,
                _with_threads(self._config.learner, num_cores),
                self._note_progress,
                seed=self._config.seed,
                banned=banned_token_ids(self._policy.tokenizer),
                train_vision=self._config.policy.train_vision,
                tokens_per_microbatch=self._config.grpo.tokens_per_microbatch,
            )

    def train(self, groups: list[Group]) -> dict[str, float]:
        """One GRPO step on whole groups; its metrics."""
        return self._grpo().step(groups)

    def publish(self, version: int) -> str:
        """Publish the trainable weights as `version`; the manifest as JSON."""
        weights = list(merged_weights(self._policy, self._config.policy.train_vision))
        return self._publisher.publish(weights, version).model_dump_json()

    def save(self, path: str, extra: dict[str, Any]) -> None:
        """Write a checkpoint with `extra` (plain JSON values) in it, atomically, and let the oldest go."""
        save_checkpoint(Path(path), self._policy, self._grpo(), extra)
        prune_checkpoints(Path(path).parent, self._config.flow.keep_checkpoints)

    def load(self, path: str) -> dict[str, Any]:
        """Restore a checkpoint; its `extra`. Raises RunFolderError."""
        return load_checkpoint(Path(path), self._policy, self._grpo())

    def save_policy(self, path: str) -> None:
        """Write the weights alone, as a Hugging Face folder."""
        save_policy(Path(path), self._policy)

    @ray.method(concurrency_group="control")
    def stats(self) -> dict[str, Any]:
        """Progress of a cold start, number of updates; answers while the learner works."""
        return {"num_updates": self._trainer.num_updates if self._trainer else 0, **self._progress}

    @ray.method(concurrency_group="weights")
    def stored_weights(self, version: int) -> list[Any]:
        """References of a version's buckets in the object store; answers while the learner works."""
        return self._publisher.stored(version)

    @ray.method(concurrency_group="weights")
    def send_weights(self, manifest: str, receiver: str, life: int, generator: Handle) -> None:
        """Send a version to a generator's engine (GPU transports); answers while the learner works."""
        self._publisher.send(Manifest.from_json(manifest), receiver, life, lambda: SyncClient(generator))

    def close(self) -> None:
        """Remove the published versions from the machine."""
        self._publisher.close()

    def _grpo(self) -> GrpoTrainer:
        """Made at first use, after the cold start: the reference policy of a KL term is the policy then."""
        if self._trainer is None:
            self._trainer = GrpoTrainer(self._policy, self._config)
        return self._trainer

    def _note_progress(self, num_done: int, num_total: int, metrics: dict[str, float]) -> None:
        self._progress = {"doing": "sft", "num_done": num_done, "num_total": num_total, "last": metrics}


def _with_threads(learner: LearnerConfig, num_cores: int) -> LearnerConfig:
    """For a phase in which the engines idle. Plain fp32 gains nothing from threads: small products wait for each other."""
    wanted = min(num_cores, MAX_THREADS) if learner.bf16 else 1
    return learner.model_copy(update={"num_threads": max(learner.num_threads, wanted)})
