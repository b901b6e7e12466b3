"""What the driver asks of actors at work: the coordinator's loop, followed to its end, and the generators' counters. Called by
`actors.job`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ray.exceptions import RayActorError

from actors.handles import Handle
from medvista_ray.reports.progress import RunProgress

POLL_S = 1.0


async def follow(coordinator: Any, num_steps: int, progress: RunProgress) -> dict[str, Any]:
    """Run the loop until `num_steps` steps are done in all, or it is stopped; its final status. Raises what it raises."""
    loop = asyncio.ensure_future(_result(coordinator.run.remote(num_steps)))
    num_shown = 0
    while not loop.done():
        await asyncio.wait([loop], timeout=POLL_S)
        for record in await coordinator.records.remote(num_shown):
            progress.step(record)
            num_shown = int(record["step"])
    return await loop


async def _result(ref: Any) -> Any:
    """A Ray reference as a coroutine, for asyncio.ensure_future."""
    return await ref


async def all_stats(generators: Mapping[str, Handle]) -> list[dict[str, Any]]:
    """`stats` of each generator that lives; one that died has none."""
    answers: list[dict[str, Any]] = []
    for call in [actor.stats.remote() for actor in generators.values()]:
        with suppress(RayActorError):
            answers.append(await call)
    return answers
