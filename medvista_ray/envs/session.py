"""One episode played by text turns, kept and scored: what every facade and adapter has in common.

Owns the record of the turns and the score at the end. Invariant: the score is the training job's own (`REWARDS`), so
that an episode is worth the same in any framework; an infrastructure failure ends the episode unscored, as FAILED.
Called by the Gymnasium facade, the vector environment and the adapters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from medvista_ray.config import RewardConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.errors import InvariantError, ToolInfrastructureError
from medvista_ray.protocol import system_prompt
from medvista_ray.rewards.catalog import REWARDS
from medvista_ray.types import Episode, EpisodeStatus, Observation, StepResult, Task, Turn


def turn_of(text: str, step: StepResult) -> Turn:
    """What the policy wrote and what the environment made of it, as one record."""
    info: Any = step.info
    return Turn(
        text=text,
        tool=info["tool_name"],
        arguments=info["arguments"],
        error=info["error_code"],
        observation=step.observation.text,
        image_indices=tuple(image["index"] for image in info["images"]),
        latency_s=info["latency_s"],
    )


def scored_episode(
    task: Task, status: EpisodeStatus, turns: Sequence[Turn], answer: str | None, config: RewardConfig, reward: str
) -> Episode:
    """An episode without tokens, scored by the registered reward: error codes (E6 included), reward and its parts."""
    empty = np.zeros(0, np.int32)
    episode = Episode(
        task=task,
        status=status,
        turns=list(turns),
        answer=answer,
        token_ids=empty,
        loss_mask=empty.astype(np.bool_),
        logprobs=empty.astype(np.float32),
        versions=empty,
        images=[],
    )
    return REWARDS.load(reward)(episode, config)


class Session:
    """`reset`, then `step` until `episode` is there. One task at a time; reusable."""

    def __init__(self, env: MedEnv, config: RewardConfig | None = None, reward: str = "composite") -> None:
        self.env = env
        self._config, self._reward = config or RewardConfig(), reward
        self._task: Task | None = None
        self.turns: list[Turn] = []
        self.episode: Episode | None = None
        """The finished, scored episode; None while it runs."""

    @property
    def system_prompt(self) -> str:
        """What a policy is told first: the grammar, the tools on offer and the budget of calls."""
        return system_prompt(self.env.specs, self.env.max_calls)

    async def reset(self, task: Task) -> Observation:
        """Start `task`. Raises what its source raises if a picture cannot be opened."""
        self._task, self.turns, self.episode = task, [], None
        return await self.env.reset(task)

    async def step(self, text: str, num_tokens: int = 0) -> StepResult:
        """One turn. A tool that stays out of reach ends the episode as FAILED, which scores 0 and must not be trained."""
        if self._task is None or self.episode is not None:
            raise InvariantError("step on a session without a running episode; call reset first")
        try:
            step = await self.env.step(text, num_tokens)
        except ToolInfrastructureError as error:  # fault boundary: this episode is lost, the caller's loop goes on
            step = self._lost(str(error))
        self.turns.append(turn_of(text, step))
        if step.terminated or step.truncated:
            self._finish(step)
        return step

    def _finish(self, step: StepResult) -> None:
        if step.info.get("failed"):
            status = EpisodeStatus.FAILED
        else:
            status = EpisodeStatus.ANSWERED if step.terminated else EpisodeStatus.TRUNCATED
        self.give_up(status, step.info["answer"])

    def give_up(self, status: EpisodeStatus = EpisodeStatus.TRUNCATED, answer: str | None = None) -> Episode:
        """End the episode here and score it: for a caller whose own limits (turns, context) ended it early."""
        if self._task is None:
            raise InvariantError("no episode was started; call reset first")
        self.episode = scored_episode(self._task, status, self.turns, answer, self._config, self._reward)
        return self.episode

    def _lost(self, message: str) -> StepResult:
        info = {
            "turn": len(self.turns) + 1,
            "tool_name": None,
            "tool_ok": False,
            "error_code": None,
            "message": message,
            "latency_s": 0.0,
            "arguments": {},
            "answer": None,
            "images": [],
            "data": {},
            "failed": True,
        }
        return StepResult(
            observation=Observation(f"infrastructure failed: {message}"), terminated=False, truncated=True, info=info
        )
