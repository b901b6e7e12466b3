"""`MedVista-v0`: the environment behind Gymnasium's API, one episode at a time.

Owns the spaces and the 5-tuple; everything else is the async core's. Invariant: the reward comes with the last step
and is the training job's own; every returned value is fresh, the caller may keep or change it. Made by
`gymnasium.make` once `medvista_ray.envs.registered` is imported.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from medvista_ray.envs.portal import wait_for
from medvista_ray.envs.session import Session
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.protocol.parser import MAX_TURN_CHARACTERS
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.tasks.source import TaskSource
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Observation, StepResult, Task

MAX_OBSERVATION_CHARACTERS = 1 << 20
NUM_SAMPLED_CHARACTERS = 64
"""Length of a random action: text that is not the grammar."""

GymObservation = dict[str, Any]
"""text: str; images: tuple of [side, side, 3] uint8, the pictures that are new in this step."""


class AnyText(spaces.Text):
    """Any text up to a length; `Text` alone would bound the characters too, and questions hold any."""

    def __init__(self, max_length: int, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset=string.printable, seed=seed)

    def contains(self, x: Any) -> bool:
        """Whether `x` is a text of at most `max_length` characters."""
        return isinstance(x, str) and len(x) <= self.max_length

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Printable characters, short: what a hopeless policy writes."""
        num = int(self.np_random.integers(1, min(NUM_SAMPLED_CHARACTERS, self.max_length) + 1))
        return super().sample(mask=(num, None) if mask is None else mask)


def observation_space(side: int) -> spaces.Dict:
    """Of one environment; see GymObservation."""
    picture = spaces.Box(0, 255, (side, side, 3), np.uint8)
    return spaces.Dict({"text": AnyText(MAX_OBSERVATION_CHARACTERS), "images": spaces.Sequence(picture)})


def gym_observation(observation: Observation, side: int) -> GymObservation:
    """An observation as Gymnasium returns it; the pictures are copies."""
    return {"text": observation.text, "images": tuple(policy_picture(image, side).copy() for image in observation.images)}


def gym_info(session: Session, task: Task, step: StepResult | None = None) -> dict[str, Any]:
    """Task facts and, after a step, what the call did; at the end `reward_parts`, `correct` and `error_codes`.

    Never the gold answer: at the end `correct` tells whether it was given.
    """
    info: dict[str, Any] = {"task_id": task.id, "source": task.source, "family": task.family, "modality": task.modality}
    if step is None:
        return {**info, "system_prompt": session.system_prompt}
    info |= _fresh(step.info)
    if session.episode is not None:
        episode = session.episode
        info |= {"reward_parts": dict(episode.reward_parts), "correct": episode.correct, "status": episode.status.value}
        info["error_codes"] = [code.value for code in episode.error_codes]
    return info


def _fresh(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _fresh(item) for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType]
    return [_fresh(item) for item in value] if isinstance(value, list | tuple) else value  # pyright: ignore[reportUnknownVariableType]


class MedVistaEnv(gym.Env[GymObservation, str]):
    """Action: one turn of the policy, as text in the think / tool_call / answer grammar.

    Keyword arguments are those of EnvSettings, and `source`, `client`, `count_tokens` as for Workshop. Raises
    ConfigError for a wrong one, AssetError if a tool's or the source's data is absent.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array", "ansi"], "render_fps": 1}  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(
        self,
        render_mode: str | None = None,
        *,
        source: TaskSource | None = None,
        client: ToolClient | None = None,
        count_tokens: Callable[[str], int] | None = None,
        **settings: Any,
    ) -> None:
        self.render_mode = render_mode
        self.workshop = Workshop(EnvSettings.of(settings), source=source, client=client, count_tokens=count_tokens)
        self._side = self.workshop.settings.image_side
        self.observation_space = observation_space(self._side)
        self.action_space = AnyText(MAX_TURN_CHARACTERS)
        self.session = self.workshop.session()
        self._task: Task | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[GymObservation, dict[str, Any]]:
        """Start a task: `options={"task": id or position}`, else one drawn by the seed. Raises ConfigError."""
        super().reset(seed=seed)
        key = (options or {}).get("task")
        tasks = self.workshop.tasks
        self._task = tasks[int(self.np_random.integers(len(tasks)))] if key is None else self.workshop.task(key)
        observation = wait_for(self.session.reset(self._task))
        return gym_observation(observation, self._side), gym_info(self.session, self._task)

    def step(self, action: str) -> tuple[GymObservation, SupportsFloat, bool, bool, dict[str, Any]]:
        """One turn. The reward is 0.0 but for the last step. Raises InvariantError before `reset` and after the end."""
        step = wait_for(self.session.step(action, self.workshop.count_tokens(action)))
        episode = self.session.episode
        assert self._task is not None  # session.step would have raised
        return (
            gym_observation(step.observation, self._side),
            episode.reward if episode else 0.0,
            step.terminated,
            step.truncated,
            gym_info(self.session, self._task, step),
        )

    def render(self) -> NDArray[np.uint8] | str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """ "rgb_array": the newest picture as shown to the policy, [side, side, 3]; "ansi": the episode's text."""
        if self.render_mode == "rgb_array":
            images = self.session.env.images
            return policy_picture(images[-1], self._side).copy() if images else np.zeros((self._side, self._side, 3), np.uint8)
        if self.render_mode == "ansi":
            question = self._task.question if self._task else ""
            return "\n".join([question, *(f"{turn.text}\n{turn.observation}" for turn in self.session.turns)])
        return None

    def close(self) -> None:
        """End the tools that this environment started."""
        self.workshop.close()
