"""One episode, token in token out: generate, step the environment, append the observation, until it ends.

Owns the episode's tokens. Invariants: the ids that are trained are the ids that the engine ran on and sampled, each
turn's prompt repeats all earlier ids exactly (checked every turn); only sampled tokens have loss mask 1; versions
never decrease. No Ray, no vLLM: engine, environment and chat format come in as protocols. Called by generators,
expert and evaluator.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from medvista_ray.config import RolloutConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.envs.session import turn_of
from medvista_ray.errors import ConfigError, ToolInfrastructureError
from medvista_ray.protocol import system_prompt
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.engine import Engine, Sampling
from medvista_ray.rollout.transcript import Transcript
from medvista_ray.types import Episode, EpisodeStatus, Task, Turn

if TYPE_CHECKING:
    from medvista_ray.tools.base import Tool

MIN_TURN_TOKENS = 8
"""With less room than this in the context no turn is started: it could not even close its tags."""


async def run_episode(
    task: Task,
    env: MedEnv,
    engine: Engine,
    chat: ChatFormat,
    config: RolloutConfig,
    specs: Sequence[type[Tool]],
    image_side: int,
    temperature: float | None = None,
    *,
    max_model_len: int | None = None,
) -> Episode:
    """Play `task` once; `temperature` None takes the config's; `max_model_len` is the context in tokens, if bounded.

    A tool that stays out of reach gives an episode FAILED, which is neither scored nor trained. Raises InvariantError
    if the engine's ids do not continue the episode's, ConfigError if not even the question fits, and whatever the
    engine raises.
    """
    start = time.perf_counter()
    transcript = Transcript(chat, image_side)
    turns: list[Turn] = []
    answer: str | None = None
    status = EpisodeStatus.TRUNCATED
    transcript.begin(system_prompt(specs, config.max_calls, config.tool_prompt), await env.reset(task))
    if max_model_len is not None and _room(transcript, config, max_model_len) < MIN_TURN_TOKENS:
        length = transcript.expected_length
        raise ConfigError(f"policy.max_model_len = {max_model_len}: task {task.id!r} starts with about {length}")
    while (room := _room(transcript, config, max_model_len)) >= MIN_TURN_TOKENS:
        sampling = Sampling(config.temperature if temperature is None else temperature, room)
        completion = await engine.generate(transcript.prompt(), sampling)
        transcript.append(completion)
        text = chat.decode(completion.token_ids)
        try:
            step = await env.step(text, len(completion.token_ids))
        except ToolInfrastructureError as error:  # fault boundary: the episode is lost, the group says so
            turns.append(Turn(text=text, observation=f"infrastructure failed: {error}"))
            status = EpisodeStatus.FAILED
            break
        turns.append(turn_of(text, step))
        if step.terminated or step.truncated:
            answer = step.info["answer"]
            status = EpisodeStatus.ANSWERED if step.terminated else EpisodeStatus.TRUNCATED
            break
        transcript.observe(step.observation)
    return transcript.episode(task=task, status=status, turns=turns, answer=answer, duration_s=time.perf_counter() - start)


async def run_group(
    task: Task,
    make_env: Callable[[], MedEnv],
    engine: Engine,
    chat: ChatFormat,
    config: RolloutConfig,
    specs: Sequence[type[Tool]],
    image_side: int,
    group_size: int,
    temperature: float | None = None,
    *,
    max_model_len: int | None = None,
) -> list[Episode]:
    """`group_size` episodes of one task at the same time, each in its own environment; all fail together."""

    async def one() -> Episode:
        return await run_episode(
            task, make_env(), engine, chat, config, specs, image_side, temperature, max_model_len=max_model_len
        )

    try:
        async with asyncio.TaskGroup() as tasks:
            running = [tasks.create_task(one()) for _ in range(group_size)]
    except ExceptionGroup as failures:  # callers know the plain errors; the others of the group were cancelled
        raise failures.exceptions[0] from None
    return [done.result() for done in running]


def _room(transcript: Transcript, config: RolloutConfig, max_model_len: int | None) -> int:
    """Tokens that the next turn may have."""
    if max_model_len is None:
        return config.max_turn_tokens
    return min(config.max_turn_tokens, max_model_len - transcript.expected_length)
