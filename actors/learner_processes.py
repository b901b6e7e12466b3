"""Where the processes of a learner of several run: a placement group with a bundle for each.

Invariant: all bundles are reserved together or none is, so that no process waits for another that has no place. Called by
the supervisor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors import names
from actors.handles import Handle
from medvista_ray.config import TrainConfig


@dataclass(frozen=True)
class LearnerProcesses:
    """The peers of a front and the placement group of all."""

    handles: list[Handle]
    """From rank 1 on."""
    placement: PlacementGroup | None

    def place(self, rank: int) -> dict[str, Any]:
        """Actor options that put process `rank` into its bundle."""
        assert self.placement is not None, "a learner of one process has no place to choose"
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self.placement, rank)}

    def remove(self) -> None:
        """Give the bundles back. Idempotent."""
        if self.placement is not None:
            remove_placement_group(self.placement)


def start_peers(actor: Handle, options: dict[str, Any], config: TrainConfig, model_folder: str, run_id: str) -> LearnerProcesses:
    """Bundles for all processes of a learner, and its processes but the front, not yet ready. `options`: of each."""
    learner = config.learner
    bundle = {"CPU": options["num_cpus"], "GPU": options["num_gpus"]}
    bundles = [{kind: float(count) for kind, count in bundle.items() if count} for _ in range(learner.num_processes)]
    options_of_all: dict[str, Any] = {"strategy": "PACK"}
    if learner.node_labels:
        options_of_all["bundle_label_selector"] = [learner.node_labels for _ in bundles]
    started = LearnerProcesses([], placement_group(bundles, **options_of_all))
    for rank in range(1, learner.num_processes):
        place = {"name": names.learner_peer(rank), **options, **started.place(rank)}
        started.handles.append(actor.options(**place).remote(config, model_folder, run_id))
    return started
