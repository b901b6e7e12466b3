"""A scripted expert in the place of the policy: the same loop, environment and tokens, for cold-start trajectories.

Invariant: an expert's episode is tokenised by the very `ChatFormat` that renders the policy's, and its tokens carry
loss mask 1, log-prob 0 and version -1 (no policy sampled them). Called by whoever makes trajectories for SFT.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medvista_ray.config import RolloutConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.engine import Completion, Prompt, Sampling
from medvista_ray.rollout.loop import run_episode
from medvista_ray.types import Episode, Observation, Task

Expand = Callable[[list[int], list[NDArray[np.uint8]]], list[int]]
"""Un-expanded ids and pictures -> expanded ids, as the engine would (`PolicyInputs.expand`)."""


class Expert(Protocol):
    """Writes turns; may know the gold region, never speaks but through the protocol."""

    async def next(self, observation: Observation) -> str:
        """The next turn's text, after what it was shown last."""
        ...


class ScriptedExpert:
    """An `Engine` that writes an expert's turns instead of sampling. `Sampling` has no effect on it."""

    def __init__(self, expert: Expert, env: MedEnv, chat: ChatFormat, expand: Expand) -> None:
        self._expert = expert
        self._env = env
        self._chat = chat
        self._expand = expand

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """The expert's next turn, whole, whatever `sampling` says."""
        text = await self._expert.next(self._env.observation)
        token_ids = self._chat.encode_text(text)
        return Completion(
            prompt_ids=self._expand(prompt.token_ids, prompt.images),
            token_ids=token_ids,
            logprobs=np.zeros(len(token_ids), np.float32),
            versions=np.full(len(token_ids), -1, np.int32),
            text=text,
            stopped=True,
        )


async def run_scripted(
    task: Task,
    env: MedEnv,
    chat: ChatFormat,
    expert: Expert,
    expand: Expand,
    config: RolloutConfig,
    image_side: int,
    *,
    max_model_len: int | None = None,
) -> Episode:
    """Play `task` with the expert's turns, real tools included. Same result and errors as `run_episode`."""
    engine = ScriptedExpert(expert, env, chat, expand)
    return await run_episode(task, env, engine, chat, config, env.specs, image_side, max_model_len=max_model_len)
