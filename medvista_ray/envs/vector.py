"""Many episodes at once behind Gymnasium's vector API: the tool calls of a step run concurrently, not in turn.

Invariant: sub-environment i behaves as a single one seeded with `seed + i`; one that ended starts its next task on the
step after (Gymnasium's NEXT_STEP), with reward 0. Tools and source are loaded once for all. Called through
`gymnasium.make_vec("MedVista-v0", num_envs=..., vectorization_mode="vector_entry_point")`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from numpy.typing import NDArray

from medvista_ray.envs.gym_env import AnyText, GymObservation, gym_info, gym_observation, observation_space
from medvista_ray.envs.portal import wait_for
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.errors import ConfigError
from medvista_ray.protocol.parser import MAX_TURN_CHARACTERS
from medvista_ray.tasks.source import TaskSource
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Task

Batch = dict[str, Any]
"""text: tuple of n texts; images: tuple of n tuples of pictures."""
_One = tuple[GymObservation, float, bool, bool, dict[str, Any]]


class MedVistaVectorEnv(VectorEnv[Batch, Sequence[str], NDArray[Any]]):
    """`num_envs` sub-environments; keyword arguments as for MedVistaEnv."""

    metadata: ClassVar[dict[str, Any]] = {"autoreset_mode": AutoresetMode.NEXT_STEP, "render_modes": []}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        num_envs: int = 1,
        *,
        source: TaskSource | None = None,
        client: ToolClient | None = None,
        count_tokens: Callable[[str], int] | None = None,
        **settings: Any,
    ) -> None:
        self.num_envs = num_envs
        self.workshop = Workshop(EnvSettings.of(settings), source=source, client=client, count_tokens=count_tokens)
        self._side = self.workshop.settings.image_side
        self.single_observation_space = observation_space(self._side)
        self.single_action_space = AnyText(MAX_TURN_CHARACTERS)
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.sessions = [self.workshop.session() for _ in range(num_envs)]
        self._tasks: list[Task] = []
        self._generators: list[np.random.Generator] = [seeding.np_random(None)[0] for _ in range(num_envs)]

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Batch, dict[str, Any]]:
        """Start a task in each: `options={"tasks": [id or position, ...]}`, else drawn by the seeds. Raises ConfigError."""
        seeds = [None if seed is None else seed + i for i in range(self.num_envs)] if not isinstance(seed, Sequence) else seed
        keys = (options or {}).get("tasks", [None] * self.num_envs)
        for name, values in (("seed", seeds), ("tasks", keys)):
            if len(values) != self.num_envs:
                raise ConfigError(f"{name}: {len(values)} values for {self.num_envs} environments")
        for i, one in enumerate(seeds):
            if one is not None:
                self._generators[i] = seeding.np_random(one)[0]
        self._tasks = [self._draw(i) if key is None else self.workshop.task(key) for i, key in enumerate(keys)]
        batch, *_, infos = self._together([self._start(i) for i in range(self.num_envs)])
        return batch, infos

    def step(self, actions: Sequence[str]) -> tuple[Batch, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """One turn of each, at the same time. Raises ConfigError if there are not `num_envs` actions."""
        if len(actions) != self.num_envs:
            raise ConfigError(f"actions: {len(actions)} for {self.num_envs} environments")
        return self._together([self._advance(i, action) for i, action in enumerate(actions)])

    def _together(self, work: Sequence[Any]) -> tuple[Batch, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        async def gather() -> list[_One]:
            return await asyncio.gather(*work)

        done = wait_for(gather())
        infos: dict[str, Any] = {}
        for i, one in enumerate(done):
            infos = self._add_info(infos, one[4], i)
        empty = create_empty_array(self.single_observation_space, self.num_envs)
        batch: Any = concatenate(self.single_observation_space, [one[0] for one in done], empty)
        rewards, terminated, truncated = (np.array([one[k] for one in done]) for k in (1, 2, 3))
        return batch, rewards, terminated, truncated, infos

    async def _advance(self, i: int, action: str) -> _One:
        session = self.sessions[i]
        if session.episode is not None:
            self._tasks[i] = self._draw(i)
            return await self._start(i)
        step = await session.step(action, self.workshop.count_tokens(action))
        reward = session.episode.reward if session.episode else 0.0
        info = gym_info(session, self._tasks[i], step)
        return gym_observation(step.observation, self._side), reward, step.terminated, step.truncated, info

    async def _start(self, i: int) -> _One:
        observation = await self.sessions[i].reset(self._tasks[i])
        return gym_observation(observation, self._side), 0.0, False, False, gym_info(self.sessions[i], self._tasks[i])

    def _draw(self, i: int) -> Task:
        return self.workshop.tasks[int(self._generators[i].integers(len(self.workshop.tasks)))]

    def close_extras(self, **kwargs: Any) -> None:
        """End the tools that this environment started."""
        self.workshop.close()
