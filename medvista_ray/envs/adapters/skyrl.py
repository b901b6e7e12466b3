"""The environment as a SkyRL-Gym text environment (skyrl-gym 0.4): `init`, `step`, `close`, `get_metrics`.

Invariant: the policy writes the think / tool_call / answer grammar, as in the training job; a row of the data set says
which task by `task_id`. Registered by `register()`; SkyRL then makes it by the id "medvista".
"""

# The peer is optional: where it is absent, its types are unknown.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import skyrl_gym
from pydantic import TypeAdapter
from skyrl_gym.envs.base_text_env import BaseTextEnv, BaseTextEnvStepOutput

from medvista_ray.envs.adapters.messages import user_message
from medvista_ray.envs.portal import wait_for
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.errors import ConfigError
from medvista_ray.types import EpisodeStatus

ENV_ID = "medvista"


def register(workshop: Workshop | None = None) -> None:
    """Make `skyrl_gym.make("medvista", ...)` known; `workshop` replaces the one that each `env_config` describes."""
    skyrl_gym.envs.registration.registry.pop(ENV_ID, None)
    skyrl_gym.register(ENV_ID, entry_point="medvista_ray.envs.adapters.skyrl:SkyRLEnv", kwargs={"workshop": workshop})


def dataset_rows(workshop: Workshop) -> list[dict[str, Any]]:
    """One row per task, as SkyRL's data sets are laid out; the prompt is made by `init`, so that pictures stay out."""
    return [
        {"data_source": task.source, "prompt": [], "env_class": ENV_ID, "reward_spec": {}, "task_id": task.id}
        for task in workshop.tasks
    ]


class SkyRLEnv(BaseTextEnv):
    """`env_config`: a mapping of EnvSettings; `extras`: the row, with `task_id`. Raises ConfigError if it has none."""

    def __init__(self, env_config: Any = None, extras: Mapping[str, Any] | None = None, workshop: Workshop | None = None) -> None:
        super().__init__()
        if not extras or "task_id" not in extras:
            raise ConfigError("extras: a row with task_id is needed (see dataset_rows)")
        self._workshop = workshop or _shared(_frozen(env_config))
        self._task = self._workshop.task(extras["task_id"])
        self._session = self._workshop.session()
        self._side = self._workshop.settings.image_side
        # The turn that answers, and the one that a policy without calls left wastes, count as turns too.
        self.max_turns = self._workshop.settings.max_calls + 1

    def init(self, prompt: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The system prompt and the question with its pictures, appended to `prompt`."""
        observation = wait_for(self._session.reset(self._task))
        system = {"role": "system", "content": self._session.system_prompt}
        return [system, *prompt, user_message(observation, self._side)], {"task_id": self._task.id}

    def step(self, action: str) -> BaseTextEnvStepOutput:
        """One turn of the policy; the reward comes with the last."""
        self.turns += 1
        step = wait_for(self._session.step(action, self._workshop.count_tokens(action)))
        if self._session.episode is None and self.turns >= self.max_turns:
            self._session.give_up()
        episode = self._session.episode
        return BaseTextEnvStepOutput(
            observations=[] if episode else [user_message(step.observation, self._side)],
            reward=episode.reward if episode else 0.0,
            done=episode is not None,
            metadata=dict(step.info),
        )

    def get_metrics(self) -> dict[str, Any]:
        """Of the finished episode: correct, num_calls, the error codes' counts. Empty before its end."""
        episode = self._session.episode
        if episode is None:
            return {}
        codes = [code.value for code in episode.error_codes]
        return {
            "correct": float(episode.correct),
            "num_calls": episode.num_calls,
            "failed": float(episode.status is EpisodeStatus.FAILED),
            **{f"num_{code}": codes.count(code) for code in ("E1", "E2", "E3", "E4", "E5", "E6")},
        }


def _frozen(env_config: Any) -> str:
    """The settings as JSON: equal ones share their tools."""
    plain = dict(env_config) if env_config else {}
    return TypeAdapter(EnvSettings).dump_json(EnvSettings.of(plain)).decode()


@cache
def _shared(settings: str) -> Workshop:
    return Workshop(EnvSettings.model_validate_json(settings))
