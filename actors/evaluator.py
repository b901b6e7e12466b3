"""Evaluation of one arm: every task once, over all generators, with a bounded number of episodes in flight.

Invariant: one episode per task, in the tasks' order, or an error; an infrastructure failure is retried, never scored.
Called by the composition roots between phases of a run, when the loop does not run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ray.exceptions import RayActorError

from actors.handles import Handle
from medvista_ray.errors import GeneratorDiedError
from medvista_ray.types import Episode, EpisodeStatus, Task

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
RETRY_DELAY_S = 2.0


async def evaluate(
    generators: Sequence[Handle],
    tasks: Sequence[Task],
    *,
    with_tools: bool,
    temperature: float,
    concurrency: int,
    manifest: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Episode]:
    """One scored episode per task, by value. `manifest`: what a generator loads that died meanwhile.

    An episode whose infrastructure failed MAX_ATTEMPTS times comes back with status FAILED. Raises GeneratorDiedError
    if a generator stays dead.
    """
    episodes: list[Episode | None] = [None] * len(tasks)
    queue = list(reversed(range(len(tasks))))

    async def work(generator: Handle) -> None:
        while queue:
            index = queue.pop()
            episodes[index] = await _attempt(generator, tasks[index], with_tools, temperature, manifest)
            if progress:
                progress(sum(episode is not None for episode in episodes), len(tasks))

    workers = min(concurrency, len(tasks))
    await asyncio.gather(*(work(generators[i % len(generators)]) for i in range(workers)))
    return [episode for episode in episodes if episode is not None]


async def _attempt(generator: Handle, task: Task, with_tools: bool, temperature: float, manifest: str | None) -> Episode:
    error: RayActorError | None = None
    episode: Episode | None = None
    for attempt in range(MAX_ATTEMPTS):
        try:
            episodes: list[Episode] = await generator.run_episodes.remote([task], with_tools, temperature)
        except RayActorError as died:
            error = died
            log.warning("a generator died during an evaluation (attempt %d): %s", attempt + 1, died)
            await _bring_back(generator, manifest)
            continue
        episode = episodes[0]
        if episode.status is not EpisodeStatus.FAILED:
            return episode
    if episode is None:
        raise GeneratorDiedError(f"task {task.id!r} killed or outlived {MAX_ATTEMPTS} generators: {error}") from error
    return episode


async def _bring_back(generator: Handle, manifest: str | None) -> None:
    """Wait for the restarted process and give it its weights; a second death is the next attempt's business."""
    try:
        await asyncio.sleep(RETRY_DELAY_S)
        await generator.ready.remote()
        if manifest is not None:
            await generator.load_version.remote(manifest)
    except RayActorError as error:
        log.warning("a generator is not back yet: %s", error)
