"""Creates a run's actors under readable names, waits until they are ready, watches them, and ends them in order.

Invariant: every actor made here is ended by `shutdown`, or with its driver (none is detached). Called by the
composition roots.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from actors import names
from actors.coordinator import CoordinatorActor
from actors.handles import Handle
from actors.learner_processes import LearnerProcesses, start_peers
from medvista_ray.config import TrainConfig
from medvista_ray.errors import NotReadyError
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Task

log = logging.getLogger(__name__)

READY_TIMEOUT_S = 300.0
POLL_S = 2.0
SHUTDOWN_TIMEOUT_S = 15.0


class Supervisor:
    """The actors of one run."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.learner: Handle | None = None
        self._peers = LearnerProcesses([], None)
        self.generators: dict[str, Handle] = {}
        self.coordinator: Handle | None = None

    def start_learner(self, model_folder: str, run_id: str) -> Handle:
        """The learner, not yet ready; with `learner.num_processes` > 1 the front of so many processes."""
        from actors.learner import LearnerActor

        wanted = self._config.learner
        actor: Handle = LearnerActor
        options: dict[str, Any] = {"num_cpus": 1, "num_gpus": wanted.num_gpus}
        if wanted.num_processes == 1:
            options |= {"label_selector": wanted.node_labels}
        else:
            self._peers = start_peers(actor, options, self._config, model_folder, run_id)
            options |= self._peers.place(0)
        front = actor.options(name=names.LEARNER, **options)
        self.learner = front.remote(self._config, model_folder, run_id, self._peers.handles)
        return self.learner

    def start_generators(self, model_folder: str, make_client: Callable[[], ToolClient]) -> dict[str, Handle]:
        """All generators by name, not yet ready. Ray restarts a dead one; the loop may give it up."""
        from actors.generator import GeneratorActor

        actor: Handle = GeneratorActor
        wanted = self._config.generator
        for index in range(wanted.num_generators):
            name = names.generator(index)
            options: dict[str, Any] = {"name": name, "label_selector": wanted.node_labels, "max_restarts": -1}
            options |= {"num_cpus": wanted.num_cpus, "num_gpus": wanted.num_gpus}
            self.generators[name] = actor.options(**options).remote(index, self._config, model_folder, make_client)
        return self.generators

    def start_coordinator(
        self, tasks: Sequence[Task], run_dir: str, first_version: int, resume: dict[str, Any] | None = None
    ) -> Handle:
        """The coordinator over the generators and the learner started before."""
        actor: Handle = CoordinatorActor
        labels = self._config.learner.node_labels  # it dies with its node, as the learner does; generators come and go
        self.coordinator = actor.options(name=names.COORDINATOR, label_selector=labels).remote(
            self._config, tasks, self.generators, self.learner, run_dir, first_version, resume
        )
        return self.coordinator

    def wait_ready(self, timeout_s: float = READY_TIMEOUT_S) -> None:
        """Wait for learner and generators. Raises NotReadyError naming who is missing, and why if it is known."""
        actors = self.generators | ({names.LEARNER: self.learner} if self.learner else {})
        wait_ready(actors, timeout_s)

    def health(self, timeout_s: float = 10.0) -> dict[str, str]:
        """ "ok", "busy" (no answer in time) or what is wrong, by actor name."""
        probes = {name: actor.health.remote() for name, actor in self.generators.items()}
        if self.learner:
            probes[names.LEARNER] = self.learner.stats.remote()
        probes |= {names.learner_peer(rank): peer.stats.remote() for rank, peer in enumerate(self._peers.handles, start=1)}
        if self.coordinator:
            probes[names.COORDINATOR] = self.coordinator.status.remote()
        until_s = time.monotonic() + timeout_s
        return {name: _probe(ref, until_s) for name, ref in probes.items()}

    def shutdown(self) -> None:
        """End coordinator, generators and learner, in this order, each after a chance to clean up."""
        _end([self.coordinator], None)
        _end(list(self.generators.values()), "shutdown")
        _end([self.learner], "close")
        _end(self._peers.handles, None)
        self._peers.remove()
        self.coordinator = self.learner = None
        self.generators, self._peers = {}, LearnerProcesses([], None)


def wait_ready(actors: dict[str, Handle], timeout_s: float) -> None:
    """Wait until every actor's `ready` has answered.

    Raises NotReadyError with the missing actors and the cluster's free resources, or with the first actor's error.
    """
    waiting: dict[Any, str] = {actor.ready.remote(): name for name, actor in actors.items()}
    until_s = time.monotonic() + timeout_s
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=POLL_S)
        for ref in done:
            name = waiting.pop(ref)
            try:
                ray.get(ref)
            except Exception as error:  # fault boundary: whatever an actor's start raised is named and handed on
                raise NotReadyError(f"{name} did not start: {error}") from error
        if waiting and time.monotonic() > until_s:
            missing = ", ".join(sorted(waiting.values()))
            raise NotReadyError(
                f"not ready after {timeout_s:.0f} s: {missing}; free resources: {ray.available_resources()} "
                f"of {ray.cluster_resources()}"
            )


def _probe(ref: Any, until_s: float) -> str:
    try:
        answer: Any = ray.get(ref, timeout=max(0.0, until_s - time.monotonic()))
        return "unhealthy" if answer is False else "ok"
    except GetTimeoutError:
        return "busy"
    except RayActorError as error:
        return f"dead: {error}"


def _end(actors: Sequence[Handle | None], method: str | None) -> None:
    living = [actor for actor in actors if actor is not None]
    if method:
        goodbyes = [getattr(actor, method).remote() for actor in living]
        ray.wait(goodbyes, num_returns=len(goodbyes), timeout=SHUTDOWN_TIMEOUT_S) if goodbyes else None
    for actor in living:
        ray.kill(actor)
