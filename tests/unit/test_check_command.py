"""`medvista-ray check env|tool`: the built-ins pass, and a bad one hears of all its faults in one run."""

from __future__ import annotations

import random
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from pydantic import BaseModel

from medvista_ray import cli
from medvista_ray.envs import MedEnv
from medvista_ray.envs.checker import check_environment
from medvista_ray.tools.base import Tool, ToolArgs, ToolContext
from medvista_ray.tools.checker import check_tool
from medvista_ray.types import ErrorCode, Observation, StepResult, Task, ToolResult

HERE = "tests.unit.test_check_command"


class LooseArgs(BaseModel):
    """Takes anything."""

    image_index: int = 0


class Bad(Tool):
    """Breaks a rule wherever it can."""

    name = "Bad Tool"
    family: Any = "misc"
    description = ""
    Args = LooseArgs

    def run(self, args: Any, context: ToolContext) -> ToolResult:
        image = context.image(args.image_index)
        image.pixels[0, 0] = 5
        if image.pixels.shape[0] == 1:
            raise ZeroDivisionError("one pixel")
        return ToolResult(f"{random.random()}", data={"x": {1, 2}})


class NeedsWords(ToolArgs):
    """An argument that cannot be made up."""

    code: str

    def model_post_init(self, context: Any) -> None:
        if self.code != "open sesame":
            raise ValueError("wrong code")


class Picky(Tool):
    """Runs with one word only."""

    name = "picky"
    family = "parse"
    description = "opens."
    Args = NeedsWords

    def run(self, args: Any, context: ToolContext) -> ToolResult:
        return ToolResult("open.")


def rules(found: list[Any]) -> set[str]:
    return {violation.rule for violation in found}


@pytest.mark.parametrize("name", ["zoom_in", "measure"])
def test_built_in_tools_pass(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = cli.main(["check", "tool", name])
    assert (code, capsys.readouterr().out) == (0, f"tool {name}: ok\n")


def test_a_bad_tool_hears_of_every_violation_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    expected = {"name", "family", "description", "args-extra", "args-index", "data", "mutation", "deterministic", "error-code"}
    assert rules(check_tool(Bad)) == expected | {"odd-picture"}
    assert cli.main(["check", "tool", f"{HERE}:Bad"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) >= len(expected) + 1
    assert lines[-1].endswith("violations")


def test_arguments_that_cannot_be_made_up_can_be_given(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules(check_tool(Picky)) == {"arguments"}
    assert cli.main(["check", "tool", f"{HERE}:Picky", "--args", '{"code": "open sesame"}']) == 0


def test_what_is_no_tool_or_unknown_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert rules(check_tool(int)) == {"class"}
    assert cli.main(["check", "tool", "zom_in"]) == 2
    assert "'zoom_in'" in capsys.readouterr().err


def test_the_environment_of_the_training_job_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["check", "env", "MedEnv"]) == 0
    assert capsys.readouterr().out == "env MedEnv: ok\n"


class Leaky(MedEnv):
    """Discloses the gold answer, miscounts and renames codes."""

    async def reset(self, task: Task) -> Observation:
        self.task = task
        return Observation((await super().reset(task)).text)

    async def step(self, text: str, num_tokens: int = 0) -> StepResult:
        step = await super().step(text)
        info = {key: value for key, value in step.info.items() if key != "latency_s"}
        if info["error_code"] is ErrorCode.E2:
            info["error_code"] = ErrorCode.E3
        shown = Observation(f"{step.observation.text} (psst: {self.task.answer})", step.observation.images)
        return StepResult(observation=shown, terminated=False, truncated=step.truncated, info=info)


def test_a_bad_core_hears_of_every_violation_at_once() -> None:
    found = check_environment(Leaky)
    assert rules(found) == {"reset", "call", "mistakes", "answer", "budget", "gold"}
    assert any("not E2" in violation.message for violation in found)


class BadGym(gym.Env[Any, Any]):
    """Two faults that Gymnasium's own checker would report one after the other, and no end."""

    observation_space = gym.spaces.Box(0.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.array([random.random(), 0.0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return np.array([5.0, 0.0], np.float32), 0.0, False, False, {}


def test_a_bad_gymnasium_environment_hears_of_every_violation_at_once() -> None:
    text = "\n".join(violation.message for violation in check_environment(BadGym))
    assert "the same seed gives another observation" in text
    assert "no budget" in text
    assert "not within the observation space" in text


def test_what_cannot_be_made_is_a_finding() -> None:
    assert rules(check_environment(7)) == {"callable"}


@pytest.mark.assets
def test_the_registered_gymnasium_environment_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    from medvista_ray.envs.gym_env import MedVistaEnv

    class Small(MedVistaEnv):
        def __init__(self) -> None:
            super().__init__(bench={"num_train": 4, "families": ["box_measure"]}, tools=("zoom_in", "measure"))

    assert check_environment(Small) == []
