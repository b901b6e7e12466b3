"""Trajectories for the cold start: a scripted expert plays training tasks with the real tools; only right ones are kept.

Invariant: kept episodes are answered, right and free of errors; what was dropped is counted by reason. No Ray: the tools
come in as a `ToolClient`. Called by the training job.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from medvista_ray.config import TrainConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.models.policy import PolicyInputs
from medvista_ray.rewards.composite import score
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.scripted import run_scripted
from medvista_ray.tasks.bench.expert import make_expert
from medvista_ray.tasks.source import TaskSource
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Episode, EpisodeStatus, Task


@dataclass
class Trajectories:
    """What the expert brought home."""

    kept: list[Episode] = field(default_factory=list[Episode])
    num_dropped: Counter[str] = field(default_factory=Counter[str])
    """By "family: reason"."""

    def describe(self) -> str:
        """One line for the progress display."""
        dropped = ", ".join(f"{count} {reason}" for reason, count in self.num_dropped.most_common())
        total = len(self.kept) + self.num_dropped.total()
        return f"expert: kept {len(self.kept)} of {total} trajectories (dropped: {dropped or 'none'})"


async def collect_trajectories(
    tasks: Sequence[Task],
    source: TaskSource,
    client: ToolClient,
    inputs: PolicyInputs,
    config: TrainConfig,
    progress: Callable[[int, int], None] | None = None,
) -> Trajectories:
    """Let the expert play `tasks`, `expert.concurrency` at a time; kept episodes are in the tasks' order."""
    chat = ChatFormat.from_policy(inputs.tokenizer, inputs.model_type)
    slots = asyncio.Semaphore(config.expert.concurrency)
    num_done = 0

    async def play(task: Task) -> Episode:
        nonlocal num_done
        async with slots:
            env = MedEnv(client, source.open, config.rollout.max_calls)
            expert = make_expert(task, config.seed, config.expert.jitter)
            side = config.policy.image_side
            episode = await run_scripted(task, env, chat, expert, inputs.expand, config.rollout, side)
        num_done += 1
        if progress:
            progress(num_done, len(tasks))
        return score(episode, config.reward)

    result = Trajectories()
    for episode in await asyncio.gather(*(play(task) for task in tasks)):
        reason = _why_dropped(episode)
        if reason is None:
            result.kept.append(episode)
        else:
            result.num_dropped[f"{episode.task.family}: {reason}"] += 1
    return result


def _why_dropped(episode: Episode) -> str | None:
    if episode.status is EpisodeStatus.FAILED:
        return "infrastructure failed"
    if not episode.correct:
        return "wrong answer"
    return f"error {episode.error_codes[0]}" if episode.error_codes else None
