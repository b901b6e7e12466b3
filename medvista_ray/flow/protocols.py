"""What the loop needs of a generator and of a learner: actors in a run, scripted objects in unit tests."""

from __future__ import annotations

from typing import Any, Protocol

from medvista_ray.types import Group, Task


class Generator(Protocol):
    """One inference engine that runs whole groups of episodes.

    Every method may raise GeneratorDiedError; then `ready` answers once the engine runs again, with its base weights.
    """

    @property
    def name(self) -> str:
        """For logs and metrics."""
        ...

    async def ready(self) -> None:
        """Returns when the engine can generate."""
        ...

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        """Sample and score `group_size` episodes of one task."""
        ...

    async def load_version(self, manifest: str) -> dict[str, float]:
        """Load published weights in flight; seconds by phase. WeightUpdateError: the old version keeps serving."""
        ...

    async def restart(self) -> None:
        """End a process that hangs or misbehaves, so that a new one starts."""
        ...


class Learner(Protocol):
    """The one who owns the weights."""

    async def train(self, groups: list[Group]) -> dict[str, float]:
        """One optimiser step on a batch; its metrics."""
        ...

    async def publish(self, version: int) -> str:
        """Make the present weights available as `version`; the manifest as JSON."""
        ...

    async def save(self, path: str, extra: dict[str, Any]) -> None:
        """Write a checkpoint, atomically, with `extra` in it."""
        ...
