"""The environment over real tools: budget, numbering, error codes, and what it never says."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from medvista_ray.envs import MedEnv
from medvista_ray.envs.episode import NO_CALLS_LEFT
from medvista_ray.errors import InvariantError, ToolInfrastructureError
from medvista_ray.protocol import ToolCall, render_turn
from medvista_ray.tools.base import Tool, ToolArgs, ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import ErrorCode, Mask, StepResult, ToolOutcome, ToolResult
from tests.unit.scripted_engine import make_task, ramp_picture

ZOOM = render_turn("closer", ToolCall("zoom_in", {"bbox": [100, 100, 600, 700]}))
ANSWER = render_turn("seen", "liver")


class ThresholdArgs(ToolArgs):
    """The picture."""

    image_index: int = 0


class Threshold(Tool):
    """Marks the bright pixels."""

    name = "threshold"
    family = "localize"
    description = "mark bright pixels."
    Args = ThresholdArgs

    def run(self, args: Any, context: ToolContext) -> ToolResult:
        pixels = context.image(args.image_index).pixels > 200
        return ToolResult("mask: bright pixels.", masks=(Mask(args.image_index, pixels),))


class Crashing(Tool):
    """A tool with a bug."""

    name = "crashing"
    family = "parse"
    description = "fails."
    Args = ToolArgs

    def run(self, args: Any, context: ToolContext) -> ToolResult:
        raise KeyError("spleen")


class Unreachable:
    """A client whose tools are out of reach."""

    specs: tuple[type[Tool], ...] = ()

    async def call(self, name: str, arguments: Any, context: ToolContext) -> ToolOutcome:
        raise ToolInfrastructureError("no replica answers")


@pytest.fixture(scope="module")
def client() -> Iterator[LocalToolClient]:
    here = "tests.unit.test_envs_episode"
    local = LocalToolClient(["zoom_in", "measure", f"{here}:Threshold", f"{here}:Crashing"])
    yield local
    local.close()


@pytest.fixture
def play(client: LocalToolClient) -> Callable[..., list[StepResult]]:
    """Play the turns on a fresh environment of the real client."""

    def run(turns: Sequence[str], max_calls: int = 6) -> list[StepResult]:
        return play_on(MedEnv(client, lambda task: [ramp_picture()], max_calls), turns)

    return run


def play_on(env: MedEnv, turns: Sequence[str]) -> list[StepResult]:
    async def run() -> list[StepResult]:
        await env.reset(make_task())
        return [await env.step(text) for text in turns]

    return asyncio.run(run())


def call(name: str, **arguments: Any) -> str:
    return render_turn("t", ToolCall(name, arguments))


def test_reset_shows_the_question_and_its_pictures(client: LocalToolClient) -> None:
    env = MedEnv(client, lambda task: [ramp_picture(), ramp_picture(seed=1)], 6)
    observation = asyncio.run(env.reset(make_task()))
    assert observation.text == "Which organ is bright?"
    assert [image.key for image in observation.images] == [ramp_picture().key, ramp_picture(seed=1).key]


def test_a_tool_picture_gets_the_next_index_and_a_parent(play: Callable[..., list[StepResult]]) -> None:
    first, second = play([ZOOM, call("zoom_in", image_index=1, bbox=[0, 0, 500, 500])])
    assert [image["index"] for image in (*first.info["images"], *second.info["images"])] == [1, 2]
    assert [image["parent"] for image in (*first.info["images"], *second.info["images"])] == [0, 1]
    assert first.info["images"][0]["tool"] == "zoom_in"
    assert first.info["images"][0]["key"] == first.observation.images[0].key
    assert first.info["tool_ok"]
    assert (first.info["calls_used"], first.info["calls_left"]) == (1, 5)


def test_masks_are_numbered_and_reach_later_calls(client: LocalToolClient) -> None:
    env = MedEnv(client, lambda task: [ramp_picture()], 6)
    steps = play_on(env, [call("threshold"), call("threshold"), call("measure", mask_index=1)])
    assert [step.info["error_code"] for step in steps] == [None, None, None]
    assert len(env.masks) == 2
    assert "mm" in steps[2].observation.text


def test_an_answer_ends_the_episode(play: Callable[..., list[StepResult]]) -> None:
    (step,) = play([ANSWER])
    assert step.terminated
    assert not step.truncated
    assert step.info["answer"] == "liver"
    assert step.info["calls_used"] == 0


@pytest.mark.parametrize(
    ("turn", "code", "words"),
    [
        ("no tags", ErrorCode.E1, "<think>"),
        (call("zom_in", bbox=[0, 0, 9, 9]), ErrorCode.E1, "zoom_in"),
        (call("zoom_in", box=[0, 0, 9, 9]), ErrorCode.E2, "box"),
        (call("zoom_in", bbox=[0, 0, 9, 2000]), ErrorCode.E3, "bbox"),
        (call("zoom_in", image_index=7, bbox=[0, 0, 9, 9]), ErrorCode.E4, "image 7"),
        (call("crashing"), ErrorCode.E5, "crashing"),
    ],
)
def test_each_mistake_has_its_code_and_says_what_was_wrong(
    play: Callable[..., list[StepResult]], turn: str, code: ErrorCode, words: str
) -> None:
    (step,) = play([turn])
    assert step.info["error_code"] is code
    assert not step.info["tool_ok"]
    assert step.observation.text.startswith(f"error {code}: ")
    assert words in step.observation.text
    assert step.info["calls_used"] == 1
    assert not step.terminated
    assert not step.truncated


def test_the_last_call_says_so_and_the_one_after_it_truncates(play: Callable[..., list[StepResult]]) -> None:
    steps = play([ZOOM, "broken", ZOOM], max_calls=2)
    assert [step.info["calls_left"] for step in steps] == [1, 0, 0]
    assert [NO_CALLS_LEFT in step.observation.text for step in steps] == [False, True, False]
    assert [step.truncated for step in steps] == [False, False, True]
    assert "budget of 2 calls is spent" in steps[-1].observation.text
    assert steps[-1].info["error_code"] is ErrorCode.E1


def test_an_answer_after_the_last_call_still_counts(play: Callable[..., list[StepResult]]) -> None:
    steps = play([ZOOM, ANSWER], max_calls=1)
    assert steps[-1].terminated
    assert not steps[-1].truncated


def test_without_tools_every_call_is_e1(client: LocalToolClient) -> None:
    (step,) = play_on(MedEnv(None, lambda task: [ramp_picture()], 6), [ZOOM])
    assert step.info["error_code"] is ErrorCode.E1
    assert "no tool is on offer" in step.observation.text


def test_a_step_after_the_end_is_a_bug(client: LocalToolClient) -> None:
    with pytest.raises(InvariantError, match="reset"):
        play_on(MedEnv(client, lambda task: [], 6), [ANSWER, ANSWER])


def test_reset_forgets_the_episode_before(client: LocalToolClient) -> None:
    env = MedEnv(client, lambda task: [ramp_picture()], 6)
    play_on(env, [ZOOM, call("threshold")])
    (step,) = play_on(env, [ZOOM])
    assert (len(env.images), len(env.masks), step.info["calls_used"]) == (2, 0, 1)


def test_an_infrastructure_failure_is_not_an_observation() -> None:
    with pytest.raises(ToolInfrastructureError):
        play_on(MedEnv(Unreachable(), lambda task: [], 6), [ZOOM])


def test_the_environment_itself_never_says_the_gold_answer(client: LocalToolClient) -> None:
    gold = "gold-answer-7"
    turns = ["", "x", "<think>", ANSWER[:-3], call("zom_in"), call("zoom_in"), call("threshold"), ZOOM, ZOOM, ANSWER]

    async def run(env: MedEnv, turns: Sequence[str]) -> list[str]:
        shown = [(await env.reset(make_task(answer=gold, aliases=(f"{gold} too",)))).text]
        for text in turns:
            step = await env.step(text)
            shown += [step.observation.text, repr(step.info)]
            if step.terminated or step.truncated:
                break
        return shown

    for max_calls in (1, 3, 20):
        for offered in (client, None):
            shown = asyncio.run(run(MedEnv(offered, lambda task: [ramp_picture()], max_calls), turns))
            assert len(shown) >= 5
            assert not any(gold in text for text in shown)
