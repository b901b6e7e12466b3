"""Evaluation of one arm: every task once, over all generators, with a bounded number of episodes in flight.

Invariants: one episode per task, in the tasks' order, or an error; an infrastructure failure is retried, never scored;
every wait is bounded; one fault of a generator is mended once, however many of its episodes report it. Called by
`actors.arms` between phases of a run, when the loop does not run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from actors.handles import Handle, RayGenerator
from medvista_ray.errors import GeneratorDiedError
from medvista_ray.flow.slots import Limits
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
    limits: Limits | None = None,
) -> list[Episode]:
    """One scored episode per task, by value. `manifest`: what a generator loads that was restarted meanwhile; without
    one it serves the weights that it was made with. `limits.group_s` bounds an episode.

    An episode whose infrastructure failed MAX_ATTEMPTS times comes back with status FAILED. Raises GeneratorDiedError
    if a task's generator breaks as often.
    """
    players = [_Player(RayGenerator(f"generator-{i}", actor), manifest, limits or Limits()) for i, actor in enumerate(generators)]
    episodes: list[Episode | None] = [None] * len(tasks)
    queue = list(reversed(range(len(tasks))))

    async def work(player: _Player) -> None:
        while queue:
            index = queue.pop()
            episodes[index] = await _attempt(player, tasks[index], with_tools, temperature)
            if progress:
                progress(sum(episode is not None for episode in episodes), len(tasks))

    workers = min(concurrency, len(tasks))
    await asyncio.gather(*(work(players[i % len(players)]) for i in range(workers)))
    return [episode for episode in episodes if episode is not None]


async def _attempt(player: _Player, task: Task, with_tools: bool, temperature: float) -> Episode:
    error: Exception | None = None
    episode: Episode | None = None
    for _ in range(MAX_ATTEMPTS):
        try:
            episode = await player.play(task, with_tools, temperature)
        except Exception as broken:  # fault boundary: the generator is on its way back, the task is tried again
            error = broken
        else:
            if episode.status is not EpisodeStatus.FAILED:
                return episode
    if episode is None:
        raise GeneratorDiedError(f"task {task.id!r} broke or outlived {MAX_ATTEMPTS} generators: {error!r}") from error
    return episode


class _Player:
    """One generator and its recovery. `manifest` as in `evaluate`."""

    def __init__(self, generator: RayGenerator, manifest: str | None, limits: Limits) -> None:
        self._generator, self._manifest, self._limits = generator, manifest, limits
        self._life = 0
        self._recovery = asyncio.Lock()

    async def play(self, task: Task, with_tools: bool, temperature: float) -> Episode:
        """One episode. Raises whatever broke the generator, or TimeoutError, once the generator was told to come back."""
        async with self._recovery:
            life = self._life
        try:
            call = self._generator.run_episodes([task], with_tools, temperature)
            (episode,) = await asyncio.wait_for(call, self._limits.group_s)
        except Exception as error:
            await self._recover(life, error)
            raise
        return episode

    async def _recover(self, life: int, error: Exception) -> None:
        """Bring the process back with its weights; what breaks on the way is the next attempt's business."""
        async with self._recovery:
            if self._life != life:
                return
            self._life += 1
            log.warning("%s broke during an evaluation: %r; recovering", self._generator.name, error)
            try:
                if not isinstance(error, GeneratorDiedError):
                    await self._generator.restart()
                await asyncio.sleep(RETRY_DELAY_S)
                await self._bring_up()
            except Exception as again:  # fault boundary: as above
                log.warning("%s is not back yet: %r", self._generator.name, again)

    async def _bring_up(self) -> None:
        ready = self._generator.ready(as_made=self._manifest is None)
        await asyncio.wait_for(ready, self._limits.ready_s)
        if self._manifest is not None:
            await asyncio.wait_for(self._generator.load_version(self._manifest), self._limits.load_s)
