"""The environment for verifiers (0.4, API v1): a taskset, and an env whose `run` plays the model against our own core.

Invariant: the policy writes the think / tool_call / answer grammar, as in the training job; verifiers sees ordinary
user turns with pictures, and the reward, its parts and the error codes on the trace. Selected by `--env.taskset.id
medvista_ray` (verifiers looks for the names below in that package).
"""

# The peer is optional: where it is absent, its types are unknown.
# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import cache
from typing import Any

import verifiers.v1 as vf
from pydantic import Field

from medvista_ray.envs.adapters.messages import user_message
from medvista_ray.envs.session import Session
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.types import EpisodeStatus

__all__ = ["MedVistaTaskset", "MedVistaVerifiersEnv"]


class MedVistaConfig(vf.TasksetConfig):
    """Of the taskset; `settings` as for `gymnasium.make("MedVista-v0", ...)`."""

    settings: dict[str, Any] = Field(default_factory=dict)


class MedVistaData(vf.TaskData):
    """One task on the wire: which one, never its answer."""

    task_id: str
    settings: str


class MedVistaTask(vf.Task[MedVistaData, vf.State, vf.TaskConfig]):
    """Behaviour lives in the env; here only the stable identity."""

    @property
    def key(self) -> str:
        """The task's id in its source."""
        return self.data.task_id


class MedVistaTaskset(vf.Taskset[MedVistaTask, MedVistaConfig]):
    """The tasks of one split."""

    def load(self) -> Iterator[MedVistaTask]:
        """Every task of the split, in its fixed order. Raises ConfigError for a wrong setting."""
        settings = json.dumps(EnvSettings.of(self.config.settings).model_dump(mode="json"), sort_keys=True)
        for task in workshop_of(settings).tasks:
            yield MedVistaTask(MedVistaData(name=task.id, task_id=task.id, settings=settings, prompt=None), self.config.task)


class MedVistaEnvConfig(vf.EnvConfig):
    """One seat: the policy. A harness without tools of its own fits, as the tools are the environment's."""

    player: vf.AgentConfig = vf.AgentConfig(harness={"id": "null"})  # pyright: ignore[reportArgumentType]


class MedVistaVerifiersEnv(vf.Env[MedVistaEnvConfig]):
    """Each reply of the model is a turn of our environment; its observation is the next user turn."""

    async def run(self, task: vf.Task[Any, Any, Any], agents: vf.Agents) -> None:
        """Play one episode and record what it was worth."""
        workshop = workshop_of(task.data.settings)
        session = workshop.session()
        side = workshop.settings.image_side
        message = user_message(await session.reset(workshop.task(task.data.task_id)), side)
        async with agents.player.interaction(task.with_system_prompt(session.system_prompt)) as interaction:
            while session.episode is None:
                segment = await interaction.turn([message])  # pyright: ignore[reportArgumentType]
                if segment.terminated:  # a limit of the caller's own
                    session.give_up()
                    break
                step = await session.step(segment.last_reply, workshop.count_tokens(segment.last_reply))
                message = user_message(step.observation, side)
        record(interaction.trace, session)


def record(trace: vf.Trace, session: Session) -> None:
    """Put the finished episode's figures on the trace. Raises vf.EnvError if infrastructure failed: never scored."""
    episode = session.episode
    if episode is None or episode.status is EpisodeStatus.FAILED:
        raise vf.EnvError("a tool stayed out of reach")
    for name, value in episode.reward_parts.items():
        trace.record_reward(name, value, 1.0)
    trace.record_metric("correct", float(episode.correct))
    trace.record_metric("num_calls", float(episode.num_calls))
    trace.info["error_codes"] = [code.value for code in episode.error_codes]
    trace.info["turns"] = [{"tool": turn.tool, "error": turn.error, "latency_s": turn.latency_s} for turn in session.turns]


@cache
def workshop_of(settings: str) -> Workshop:
    """Tools and source for these settings (JSON), loaded once per process."""
    return Workshop(EnvSettings.model_validate_json(settings))
