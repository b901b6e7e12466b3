"""Actor handles behind the loop's protocols (`flow.protocols`): what Ray raises becomes what the loop understands.

Invariant: the death of an actor's process or node surfaces as GeneratorDiedError, its own exceptions as themselves; a
call that is cancelled here is cancelled there. Called by the coordinator and the evaluator.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import ray
from ray.exceptions import ActorUnavailableError, ObjectLostError, RayActorError

from medvista_ray.errors import GeneratorDiedError
from medvista_ray.types import Episode, Group, Task

log = logging.getLogger(__name__)

POLL_S = 0.5
Handle = Any
"""A Ray actor handle: its methods exist at run time only."""


class RayGenerator:
    """A generator actor. Its calls are made at most once; the loop decides about a second try."""

    def __init__(self, name: str, actor: Handle) -> None:
        self.name = name
        self._actor = actor

    async def ready(self, as_made: bool = False) -> None:
        """Returns when the actor answers; while its process restarts it is asked again (the caller sets a bound).

        `as_made`: it may then serve the weights that it was made with, although it was restarted.
        """
        while True:
            try:
                await (self._actor.ready.remote(True) if as_made else self._actor.ready.remote())
            except ActorUnavailableError:
                await asyncio.sleep(POLL_S)
            except RayActorError as error:
                raise GeneratorDiedError(f"{self.name}: {error}") from error
            else:
                return

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        """A finished group, by value: this process owns it, so that it survives its generator."""
        ref = self._actor.run_group.remote(group_id, task, group_size)
        group = await self._result(ref)
        group.stored = ref
        return group

    async def run_episodes(self, tasks: Sequence[Task], with_tools: bool, temperature: float) -> list[Episode]:
        """One scored episode of each task, in order, by value."""
        return await self._result(self._actor.run_episodes.remote(tasks, with_tools, temperature))

    async def load_version(self, manifest: str) -> dict[str, float]:
        """Load published weights in flight."""
        return await self._result(self._actor.load_version.remote(manifest))

    async def restart(self) -> None:
        """Kill the process; Ray starts a new one."""
        log.warning("%s is killed to be restarted", self.name)
        ray.kill(self._actor, no_restart=False)

    async def _result(self, ref: Any) -> Any:
        try:
            return await ref
        except (RayActorError, ObjectLostError) as error:  # the second: its answer was still on the node that is gone
            raise GeneratorDiedError(f"{self.name}: {error}") from error
        except asyncio.CancelledError:
            ray.cancel(ref)
            raise


class RayLearner:
    """A learner actor. Its death ends the run; `--resume` continues from the last checkpoint."""

    def __init__(self, actor: Handle) -> None:
        self._actor = actor

    async def train(self, groups: list[Group]) -> dict[str, float]:
        """One optimiser step. The learner fetches each group from the object store: nothing is packed or copied here."""
        try:
            return await self._actor.train.remote(*(group if group.stored is None else group.stored for group in groups))
        except ObjectLostError:  # told before the step begins; this process still holds them all
            log.warning("stored groups were lost, they are sent again")
            return await self._actor.train.remote(*(replace(group, stored=None) for group in groups))

    async def publish(self, version: int) -> str:
        """Make the present weights available as `version`."""
        return await self._actor.publish.remote(version)

    async def save(self, path: str, extra: dict[str, Any]) -> None:
        """Write a checkpoint."""
        await self._actor.save.remote(path, extra)
