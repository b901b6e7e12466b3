"""MedVista-v0 under Gymnasium's own checker, and the vector environment against single ones; real tools throughout."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

import medvista_ray.envs.registered  # noqa: F401 - registers the id
from medvista_ray.errors import ConfigError, InvariantError, ToolInfrastructureError
from medvista_ray.protocol import ToolCall, render_turn
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.tools.parse.measure import Measure
from medvista_ray.types import MedImage, Split, Task, ToolOutcome, ToolResult
from tests.unit.scripted_engine import make_task, ramp_picture

ZOOM = render_turn("closer", ToolCall("zoom_in", {"bbox": [100, 100, 600, 700]}))
RIGHT, WRONG = render_turn("seen", "spleen"), render_turn("seen", "liver")


class ThreeTasks:
    """A source of three questions on three pictures."""

    def tasks(self, split: Split) -> Sequence[Task]:
        return [make_task(id=f"t{i}", recipe={"seed": i}) for i in range(3)] if split is Split.TRAIN else []

    def open(self, task: Task) -> list[MedImage]:
        return [ramp_picture(seed=task.recipe["seed"])]


@pytest.fixture(scope="module")
def client() -> Iterator[LocalToolClient]:
    local = LocalToolClient(["zoom_in", "measure"])
    yield local
    local.close()


@pytest.fixture
def env(client: LocalToolClient) -> Any:
    return gym.make("MedVista-v0", source=ThreeTasks(), client=client, image_side=32, max_calls=3)


def test_it_passes_gymnasiums_own_checker() -> None:
    env: Any = gym.make("MedVista-v0", source=ThreeTasks(), tools=("zoom_in", "measure"), image_side=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)


def test_the_five_values_carry_pictures_reward_and_what_the_call_did(env: Any) -> None:
    observation, info = env.reset(options={"task": "t1"})
    assert observation["text"] == "Which organ is bright?"
    assert [picture.shape for picture in observation["images"]] == [(32, 32, 3)]
    assert "zoom_in(" in info["system_prompt"]
    observation, reward, terminated, truncated, info = env.step(ZOOM)
    assert (reward, terminated, truncated) == (0.0, False, False)
    assert (info["tool_name"], info["error_code"], info["calls_left"]) == ("zoom_in", None, 2)
    assert info["latency_s"] > 0
    (picture,) = info["images"]
    assert (picture["index"], picture["parent"], picture["bbox"]) == (1, 0, [100, 100, 600, 700])
    assert observation in env.observation_space
    _, reward, terminated, _, info = env.step(RIGHT)
    assert (terminated, info["correct"], info["error_codes"]) == (True, True, [])
    assert reward == pytest.approx(1.4)
    assert info["reward_parts"] == {"format": 0.2, "accuracy": 1.0, "tool_bonus": 0.2}


def test_valid_calls_and_a_wrong_answer_are_e6(env: Any) -> None:
    env.reset(seed=0)
    env.step(ZOOM)
    *_, info = env.step(WRONG)
    assert info["error_codes"] == ["E6"]
    env.reset(seed=0)
    env.step(render_turn("t", ToolCall("zoom_in", {"box": [1, 2, 3, 4]})))
    *_, info = env.step(WRONG)
    assert info["error_codes"] == ["E2"]


def test_the_same_seed_draws_the_same_tasks_and_others_differ(env: Any) -> None:
    def drawn(seed: int) -> list[str]:
        return [env.reset(seed=seed if i == 0 else None)[1]["task_id"] for i in range(6)]

    assert drawn(3) == drawn(3)
    assert len({tuple(drawn(seed)) for seed in range(5)}) > 1


def test_budgets_of_tokens_and_time_end_the_episode(client: LocalToolClient) -> None:
    words = gym.make("MedVista-v0", source=ThreeTasks(), client=client, max_tokens=5, count_tokens=lambda text: len(text.split()))
    words.reset(seed=0)
    *_, terminated, truncated, info = words.step("one two three four five six")
    assert (terminated, truncated, info["error_code"]) == (False, True, None)
    assert "budget of 5 tokens" in info["message"]
    soon = gym.make("MedVista-v0", source=ThreeTasks(), client=client, max_s=0.01)
    soon.reset(seed=0)
    time.sleep(0.02)
    _, reward, terminated, truncated, info = soon.step(RIGHT)
    assert (terminated, truncated, reward) == (False, True, -0.2)
    assert "budget of 0.01 s" in info["message"]


def test_tools_and_families_can_be_switched_off(client: LocalToolClient) -> None:
    env = gym.make("MedVista-v0", source=ThreeTasks(), client=client, off=("refine",))
    _, info = env.reset(seed=0)
    assert "zoom_in" not in info["system_prompt"]
    assert "measure(" in info["system_prompt"]
    *_, info = env.step(ZOOM)
    assert info["error_code"] == "E1"
    assert "unknown tool 'zoom_in'" in info["message"]
    env = gym.make("MedVista-v0", source=ThreeTasks(), client=client, off=("measure",))
    assert "measure(" not in env.reset(seed=0)[1]["system_prompt"]
    with pytest.raises(ConfigError, match=r"zom_in.*zoom_in"):
        gym.make("MedVista-v0", source=ThreeTasks(), client=client, off=("zom_in",))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"max_cals": 3}, "max_calls"),
        ({"max_calls": 0}, "max_calls = 0"),
        ({"max_tokens": 9}, "count_tokens"),
        ({"split": "tset"}, "split"),
    ],
)
def test_a_wrong_setting_names_itself_and_the_rule(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        gym.make("MedVista-v0", source=ThreeTasks(), **settings)


def test_one_string_imports_and_makes_it(client: LocalToolClient) -> None:
    env = gym.make("medvista_ray.envs.registered:MedVista-v0", source=ThreeTasks(), client=client)
    assert env.spec is not None
    assert env.spec.id == "MedVista-v0"


def test_unknown_tasks_and_empty_splits_are_clear_errors(client: LocalToolClient, env: Any) -> None:
    with pytest.raises(ConfigError, match="'t9'"):
        env.reset(options={"task": "t9"})
    with pytest.raises(ConfigError, match="no task"):
        gym.make("MedVista-v0", source=ThreeTasks(), client=client, split="test").reset()


class Unreachable:
    """A client whose tools are out of reach."""

    specs: tuple[type[Tool], ...] = ()

    async def call(self, name: str, arguments: Any, context: ToolContext) -> ToolOutcome:
        raise ToolInfrastructureError("no replica answers")


def test_an_infrastructure_failure_ends_the_episode_unscored() -> None:
    env = gym.make("MedVista-v0", source=ThreeTasks(), client=Unreachable())
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step(ZOOM)
    assert (reward, terminated, truncated, info["status"]) == (0.0, False, True, "failed")
    with pytest.raises(InvariantError, match="reset"):
        env.unwrapped.step(RIGHT)


class Slow:
    """A client whose every call takes 0.1 s."""

    specs: tuple[type[Tool], ...] = (Measure,)

    async def call(self, name: str, arguments: Any, context: ToolContext) -> ToolOutcome:
        await asyncio.sleep(0.1)
        return ToolOutcome(ToolResult("done"), latency_s=0.1)


def test_the_calls_of_a_vector_step_run_at_the_same_time() -> None:
    envs = gym.make_vec("MedVista-v0", 8, "vector_entry_point", source=ThreeTasks(), client=Slow(), image_side=16)
    envs.reset(seed=0)
    start = time.perf_counter()
    *_, infos = envs.step([render_turn("t", ToolCall("measure", {}))] * 8)
    assert time.perf_counter() - start < 0.5  # one after the other: 0.8
    assert infos["latency_s"].tolist() == [0.1] * 8


def test_each_sub_environment_behaves_as_a_single_one(client: LocalToolClient) -> None:
    options = {"source": ThreeTasks(), "client": client, "image_side": 32}
    many = gym.make_vec("MedVista-v0", 3, "vector_entry_point", **options)
    batch, infos = many.reset(seed=5)
    assert batch in many.observation_space
    singles = [gym.make("MedVista-v0", **options) for _ in range(3)]
    starts = [one.reset(seed=5 + i) for i, one in enumerate(singles)]
    assert infos["task_id"].tolist() == [info["task_id"] for _, info in starts]
    turns = [ZOOM, RIGHT, "not the grammar"]
    batch, rewards, terminated, truncated, infos = many.step(turns)
    alone = [one.step(turn) for one, turn in zip(singles, turns, strict=True)]
    assert rewards.tolist() == [one[1] for one in alone]
    assert terminated.tolist() == [False, True, False]
    assert not truncated.any()
    assert batch["text"] == tuple(one[0]["text"] for one in alone)
    assert all(np.array_equal(a, b) for i in range(3) for a, b in zip(batch["images"][i], alone[i][0]["images"], strict=True))
    assert infos["error_code"].tolist() == [None, None, "E1"]
    batch, rewards, terminated, _, _ = many.step([ZOOM] * 3)
    assert batch["text"][1] == "Which organ is bright?", "an ended one starts its next task"
    assert (rewards[1], terminated[1]) == (0.0, False)


@pytest.mark.assets
def test_the_built_in_bench_is_the_default() -> None:
    bench = {"num_train": 4, "families": ["box_measure"]}
    env: Any = gym.make("MedVista-v0", bench=bench, tools=("measure",))
    observation, info = env.reset(seed=0)
    assert (info["source"], info["family"]) == ("medvista_bench", "box_measure")
    task = env.unwrapped.workshop.task(info["task_id"])
    observation, *_ = env.step(render_turn("t", ToolCall("measure", {"bbox": list(task.regions[0])})))
    assert "mm" in observation["text"]
    env.close()
