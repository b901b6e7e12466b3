"""The TRL adapter inside the real GRPOTrainer: one step of a tiny random model whose sampling is scripted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from medvista_ray.envs.adapters.trl import dataset_rows, environment_factory
from medvista_ray.envs.setup import EnvSettings, Workshop
from tests.unit.scripted_engine import small_tokenizer
from tests.unit.test_envs_gym import ThreeTasks


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    shop = Workshop(EnvSettings(tools=("zoom_in", "measure"), image_side=32, max_calls=2), source=ThreeTasks())
    yield shop
    shop.close()


def test_chat_templates_read_each_tool_with_its_types(workshop: Workshop) -> None:
    from transformers.utils import get_json_schema

    env = environment_factory(workshop)()
    schema = get_json_schema(env.zoom_in)["function"]
    assert schema["name"] == "zoom_in"
    assert schema["parameters"]["properties"]["bbox"]["items"] == {"type": "integer"}
    assert "bbox" in schema["parameters"]["required"]
    assert "[x0, y0, x1, y1]" in json.dumps(get_json_schema(env.measure))
    assert get_json_schema(env.submit_answer)["function"]["parameters"]["required"] == ["answer"]


def test_calls_go_through_the_environment_and_pictures_come_back(workshop: Workshop) -> None:
    env = environment_factory(workshop)()
    blocks = env.reset(task_id="t2", prompt="ignored")
    assert [block["type"] for block in blocks] == ["image", "text"]
    blocks = env.zoom_in(bbox=[100, 100, 600, 700])
    assert [block["type"] for block in blocks] == ["image", "text"]
    assert blocks[0]["image"].size == (32, 32)
    assert env.zoom_in(bbox=[0, 0, 9, 2000])[0]["text"].startswith("error E3")
    env.submit_answer("spleen")
    assert env.get_reward() == pytest.approx(1.4)
    assert env.measure()[0]["text"] == "The episode is over."


def test_an_episode_without_an_answer_is_scored_as_truncated(workshop: Workshop) -> None:
    env = environment_factory(workshop)()
    env.reset(task_id="t0")
    assert env.get_reward() == pytest.approx(-0.2)
    env.reset(task_id="t0")
    env.submit_answer("spleen")
    assert env.get_reward() == pytest.approx(1.2), "an instance is reused for the next rollout"


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call><|im_end|>"


@pytest.mark.filterwarnings("ignore")
def test_the_real_trainer_plays_and_scores_episodes(workshop: Workshop, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM
    from trl.chat_template_utils import qwen3_chat_template

    tokenizer = small_tokenizer("absent")
    tokenizer.chat_template = qwen3_chat_template
    script = [
        [call("measure", bbox=[0, 0, 500, 500]), call("measure", bbox=[0, 0, 9, 2000])],
        [call("submit_answer", answer="spleen"), call("submit_answer", answer="liver")],
        ["done<|im_end|>", "done<|im_end|>"],
    ]

    class Scripted(Qwen3ForCausalLM):
        """Real forward and backward; what it samples is written above."""

        def generate(self, input_ids: Any, **_: Any) -> Any:
            ids = [tokenizer.encode(text, add_special_tokens=False) for text in script.pop(0)]
            longest = max(map(len, ids))
            rows = [row + [tokenizer.pad_token_id] * (longest - len(row)) for row in ids]
            return torch.cat([input_ids, torch.tensor(rows)], dim=1)

    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=8192,
    )  # fmt: skip
    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to=[], num_generations=2, per_device_train_batch_size=2,
        max_completion_length=2048, max_steps=1, logging_steps=1, save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    text_only = environment_factory(workshop)
    trainer = trl.GRPOTrainer(
        model=Scripted(config),
        args=arguments,
        processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(dataset_rows(workshop)),
        environment_factory=type("TextOnly", (text_only,), {"reset": _text_only_reset}),
    )
    trainer.train()
    logged = trainer.state.log_history[0]
    assert logged["rewards/TextOnly/mean"] == pytest.approx((1.4 + 0.2) / 2)
    assert logged["tools/call_frequency"] == 2.0
    assert logged["tools/failure_frequency"] == 0.0


def _text_only_reset(self: Any, task_id: str, **_: Any) -> str:
    """The tiny model of this test has no eyes: the question alone."""
    return "".join(block.get("text", "") for block in super(type(self), self).reset(task_id))
