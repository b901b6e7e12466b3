"""The comparison with TRL: both sides see the same tokens, and the figures are what they are said to be."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from benchmarks.peer_trl import compare, peer_rates, steady
from benchmarks.peer_trl_worker import TURN_ENDS, UNUSED, load, make_environment, num_with_signal, rows
from medvista_ray.config import TrainConfig
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.models.policy import TINY_FOLDER, load_inputs
from medvista_ray.protocol import ToolCall, render_turn
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import Observation
from tests.unit.scripted_engine import ramp_picture
from tests.unit.test_envs_gym import ThreeTasks

CONFIG = TrainConfig.model_validate({"policy": {"train_vision": False}})


@pytest.fixture(scope="module")
def peer() -> tuple[Any, Any]:
    """Model and processor as TRL gets them."""
    return load(str(TINY_FOLDER), CONFIG)


def test_a_conversation_is_the_same_tokens_on_both_sides(peer: tuple[Any, Any]) -> None:
    _, processor = peer
    inputs = load_inputs(TINY_FOLDER)
    chat = ChatFormat.from_policy(inputs.tokenizer, inputs.model_type)
    first, second = ramp_picture(seed=1), ramp_picture(seed=2)
    pictures = [policy_picture(image, 112) for image in (first, second)]
    turn = render_turn("", ToolCall("zoom_in", {"image_index": 0, "bbox": [1, 2, 3, 4]}))
    ours = chat.begin("Think.", Observation("Where?", (first,)))
    ours += chat.encode_text(turn.removeprefix("<think></think>")) + chat.observe(Observation("image 1.", (second,)))

    def shown(index: int, text: str) -> list[dict[str, Any]]:
        return [{"type": "image", "image": Image.fromarray(pictures[index])}, {"type": "text", "text": text}]

    call = {"type": "function", "function": {"name": "zoom_in", "arguments": {"image_index": 0, "bbox": [1, 2, 3, 4]}}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "Think."}]},
        {"role": "user", "content": shown(0, "Where?")},
        {"role": "assistant", "content": [], "tool_calls": [call]},
        {"role": "tool", "name": "zoom_in", "content": shown(1, "image 1.")},
    ]
    theirs = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    assert list(theirs["input_ids"][0]) == inputs.expand(ours, pictures)


def test_a_turn_ends_at_the_closing_tag_and_is_read_as_a_call(peer: tuple[Any, Any]) -> None:
    model, processor = peer
    tokenizer = processor.tokenizer
    assert model.generation_config.eos_token_id == [tokenizer.convert_tokens_to_ids(token) for token in TURN_ENDS]
    prefix = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False)
    turn = render_turn("I look.", ToolCall("zoom_in", {"bbox": [1, 2, 3, 4]}))
    found = tokenizer.parse_response(tokenizer.encode(turn, add_special_tokens=False), prefix=prefix)
    assert found["tool_calls"][0]["function"] == {"name": "zoom_in", "arguments": {"bbox": [1, 2, 3, 4]}}
    answer = tokenizer.encode(render_turn("I see.", "left"), add_special_tokens=False)
    assert not tokenizer.parse_response(answer, prefix=prefix).get("tool_calls")


def test_the_same_weights_are_frozen_and_the_models_forward_takes_what_trl_hands_on(peer: tuple[Any, Any]) -> None:
    import inspect

    model, _ = peer
    frozen = {name.split(".")[1] for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == {"vision_tower", "multi_modal_projector"}
    shown = inspect.signature(type(model).forward).parameters
    assert {*UNUSED, "pixel_values", "position_ids"} <= shown.keys()


def test_the_zoom_tool_is_all_that_trl_offers_beside_the_reset() -> None:
    workshop = Workshop(EnvSettings(tools=("zoom_in",), image_side=32), source=ThreeTasks())
    kind = make_environment(workshop)
    import inspect

    offered = [name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")]
    assert sorted(offered) == ["reset", "zoom_in"]
    (system, user), task_id = rows(workshop)[0]["prompt"], rows(workshop)[0]["task_id"]
    assert "zoom_in" in system["content"]
    assert (user["content"], task_id) == ("", workshop.tasks[0].id)
    workshop.close()


def record(time_s: float, **fields: float) -> dict[str, float]:
    values = {
        "num_episodes": 12.0,
        "learner_num_episodes": 8.0,
        "train_s": 1.0,
        "learner_num_tokens": 800.0,
        "num_trained_tokens": 80.0,
    }
    return values | {"time_s": time_s, "num_filtered": 0.0, "idle_generator": 0.0, "idle_learner": 0.5} | fields


def test_our_rate_is_of_the_steady_steps_alone() -> None:
    records = [record(10.0), record(12.0), record(14.0, num_filtered=3.0), record(14.1), record(14.2)]
    figures = steady(records, {0: 5.0, 1: 10.0, 3: 14.0, 4: 20.0}, warmup_steps=1, num_steps=2)
    assert figures["episodes_per_s"] == pytest.approx(16 / 4)
    assert figures["step_s"] == pytest.approx(2.0)
    assert figures["cpu_s_per_episode"] == pytest.approx(4.0 / 16)
    assert (figures["tokens_per_episode"], figures["sampled_per_episode"]) == (100.0, 10.0)
    assert figures["num_filtered_groups"] == 3.0


def test_the_shares_of_trls_step_add_up_and_the_ratio_is_of_medians() -> None:
    step = {
        "step_s": 10.0, "cpu_s": 16.0, "rollout_s": 7.0, "generate_s": 5.0, "tool_loop_s": 0.5,
        "num_episodes": 8.0, "num_tokens": 808.0, "num_sampled": 80.0, "num_pictures": 14.0, "num_with_signal": 4.0,
    }  # fmt: skip
    peer = peer_rates({"steps": [step, step], "versions": {"trl": "1.16.0"}})
    assert peer["episodes_per_s"] == pytest.approx(0.8)
    assert sum(peer["share"].values()) == pytest.approx(1.0)
    assert peer["share"]["update_s"] == 0.3
    ours = [
        {
            "episodes_per_s": rate,
            "step_s": 1.0,
            "tokens_per_episode": 101.0,
            "sampled_per_episode": 10.0,
            "cpu_s_per_episode": 0.5,
        }
        for rate in (4, 8, 5)
    ]
    figures = compare(ours, [peer] * 3, replaced=True)
    assert figures.keys() - compare(ours, [peer] * 3).keys() == {"ours_over_trl_with_signal"}
    assert figures["ours_over_trl"] == pytest.approx(5 / 0.8, abs=0.01)
    assert figures["ours_over_trl_with_signal"] == pytest.approx(5 / 0.4, abs=0.01)
    assert figures["ours_over_trl_by_round"] == [5.0, 10.0, 6.25]
    assert figures["ours_over_trl_cpu"] == pytest.approx(2.0 / 0.5)
    assert figures["sampled_per_episode_ratio"] == 1.0


def test_only_episodes_of_groups_with_different_rewards_have_a_signal() -> None:
    import torch

    assert num_with_signal(torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, -0.5]), group_size=3) == 3
    assert num_with_signal(torch.full((6,), 1e-3), group_size=3) == 0
