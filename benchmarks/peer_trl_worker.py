"""TRL's side of `peer_trl.py`, run by the Python of TRL's own environment: GRPOTrainer on the same policy, tasks and tool.

    python benchmarks/peer_trl_worker.py SPEC.json RESULT.json

TRL gets what favours it as long as the work stays the same: no gradient checkpointing, all cores, one optimiser step per
generation (so that it needs no old log-probabilities), no reference model, no logging. Two things are added for it, neither
of which costs time: a chat template that renders this project's turns, and a model class whose forward drops two
arguments that TRL passes and an InternVL does not take.
"""

from __future__ import annotations

import inspect
import json
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import medvista_ray.models  # noqa: F401  (the torchvision hook comes before transformers)
from medvista_ray.config import TrainConfig
from medvista_ray.envs.adapters.trl import environment_factory
from medvista_ray.envs.portal import wait_for
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.types import Split

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ 'user' if m['role'] == 'tool' else m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for part in m['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% for call in m['tool_calls'] or [] %}<tool_call>{{ call['function'] | tojson }}</tool_call>{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""This project's turns (rollout.chat), calls and tools' replies included."""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close_pattern": r"</think>\s*", "content": "text"},
        "tool_calls": {
            "open": "<tool_call>",
            "close_pattern": r"</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {"close_pattern": r"<\|im_end\|>\s*", "content": "text"},
    },
}
"""How transformers parses a turn of that grammar; what is not a call is content."""
UNUSED = ("token_type_ids", "num_patches")
TURN_ENDS = ("</tool_call>", "</answer>", "<|im_end|>")


def make_workshop(config: TrainConfig) -> Workshop:
    """The environment of the training job: same source, tool, budget and reward."""
    settings = {
        "bench": config.bench,
        "tools": config.tools.names,
        "max_calls": config.rollout.max_calls,
        "image_side": config.policy.image_side,
        "reward": config.reward,
    }
    return Workshop(EnvSettings.of(settings | {"split": Split.TRAIN}))


def rows(workshop: Workshop) -> list[dict[str, Any]]:
    """A row per task with this project's system prompt; question and picture come from the environment's `reset`."""
    system = {"role": "system", "content": workshop.session().system_prompt}
    return [{"prompt": [system, {"role": "user", "content": ""}], "task_id": task.id} for task in workshop.tasks]


def make_environment(workshop: Workshop) -> type[Any]:
    """The zoom tool alone: the answer is the last turn's text, as in this project, and no call."""
    return type("Tools", (environment_factory(workshop),), {"submit_answer": None, "get_reward": None})


def make_reward(tokenizer: Any) -> Callable[..., list[float]]:
    """The training job's reward of each finished conversation."""

    def reward(completion_ids: list[list[int]], environments: list[Any], **_: Any) -> list[float]:
        return [one(ids, env._session) for ids, env in zip(completion_ids, environments, strict=True)]

    def one(ids: list[int], session: Any) -> float:
        if session.episode is None:
            last = tokenizer.decode(ids).rsplit("<|im_start|>assistant\n")[-1].removesuffix("<|im_end|>")
            wait_for(session.step(last))
        return (session.episode or session.give_up()).reward

    return reward


class Stopwatch:
    """Seconds by activity and counts, since the last `take`."""

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)

    @contextmanager
    def measure(self, name: str) -> Iterator[None]:
        """Adds the body's seconds to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.values[name] += time.perf_counter() - start

    def take(self) -> dict[str, float]:
        """What was collected; begins anew."""
        taken, self.values = dict(self.values), defaultdict(float)
        return taken


def num_with_signal(advantages: Any, group_size: int) -> int:
    """Episodes of groups (one behind the other) whose rewards differ: those that have a gradient.

    The mean of equal rewards is off by rounding, which TRL's deviation of 1e-4 and more turns into advantages up to 1e-3.
    """
    return int((advantages.reshape(-1, group_size).abs() > 1e-2).any(dim=1).sum()) * group_size


def make_trainer_class(watch: Stopwatch) -> type[Any]:
    """GRPOTrainer with a stopwatch around its own methods."""
    from trl import GRPOTrainer

    class Watched(GRPOTrainer):
        """Changes nothing that the trainer does."""

        def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
            with watch.measure("generate_s"):
                return super()._generate_single_turn(*args, **kwargs)

        def _tool_call_loop(self, *args: Any) -> Any:
            before = watch.values["generate_s"]
            with watch.measure("tool_loop_s"):
                found = super()._tool_call_loop(*args)
            watch.values["tool_loop_s"] -= watch.values["generate_s"] - before
            return found

        def _generate(self, prompts: list[Any]) -> Any:
            found = super()._generate(prompts)
            prompt_ids, completion_ids, mask = found[:3]
            watch.values["num_episodes"] += len(prompt_ids)
            watch.values["num_tokens"] += sum(map(len, prompt_ids)) + sum(map(len, completion_ids))
            watch.values["num_sampled"] += sum(map(sum, mask))
            watch.values["num_pictures"] += sum(len(pictures or []) for pictures in found[6] or [])
            return found

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            with watch.measure("rollout_s"):
                found = super()._generate_and_score_completions(inputs)
            watch.values["num_with_signal"] += num_with_signal(found["advantages"], self.num_generations)
            return found

    return Watched


def load(folder: str, config: TrainConfig) -> tuple[Any, Any]:
    """The policy with the same weights frozen as on our side, and its processor."""
    from transformers import AutoProcessor, InternVLForConditionalGeneration

    from medvista_ray.models.policy import load_inputs

    class Model(InternVLForConditionalGeneration):
        """Takes and drops what an InternVL has no use for: TRL hands on all that the processor or another model has."""

        def forward(self, *args: Any, **kwargs: Any) -> Any:
            return super().forward(*args, **{key: value for key, value in kwargs.items() if key not in UNUSED})

    _show_parameters(Model, InternVLForConditionalGeneration)
    model = Model.from_pretrained(folder, dtype="float32", attn_implementation="sdpa")
    if not config.policy.train_vision:
        for name in load_inputs(Path(folder)).family.vision_modules:
            getattr(model.model, name).requires_grad_(False)
    processor = AutoProcessor.from_pretrained(folder)
    processor.chat_template, tokenizer = TEMPLATE, processor.tokenizer
    tokenizer.response_template = RESPONSE
    model.generation_config.eos_token_id = [tokenizer.convert_tokens_to_ids(token) for token in TURN_ENDS]
    # TRL appends a tool's reply behind the last end-of-sequence token of a calling turn, which here is the closing tag.
    tokenizer.eos_token = TURN_ENDS[0]
    return model, processor


def _show_parameters(model: Any, parent: Any) -> None:
    """Generation and TRL look at the parameters of `forward`: the parent's, and those that are dropped."""
    shown = inspect.signature(parent.forward)
    added = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in UNUSED]
    *named, keywords = shown.parameters.values()
    model.forward.__signature__ = shown.replace(parameters=[*named, *added, keywords])


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """Train `warmup_steps` + `num_steps` optimiser steps; the record of each of the latter."""
    import datasets
    import torch
    import transformers
    from trl import GRPOConfig

    config = TrainConfig.model_validate(spec["config"])
    torch.set_num_threads(spec["threads"])
    grpo, rollout = config.grpo, config.rollout
    batch = grpo.groups_per_step * grpo.group_size
    rows_per_pass = min(spec["rows_per_pass"], batch)
    workshop, watch = make_workshop(config), Stopwatch()
    model, processor = load(spec["policy"], config)
    arguments = GRPOConfig(
        output_dir=spec["work"], use_cpu=True, bf16=spec["bf16"], report_to=[], save_strategy="no", disable_tqdm=True,
        logging_strategy="no", seed=spec["seed"], gradient_checkpointing=False, dataloader_pin_memory=False,
        num_generations=grpo.group_size, per_device_train_batch_size=rows_per_pass,
        gradient_accumulation_steps=batch // rows_per_pass, max_steps=spec["warmup_steps"] + spec["num_steps"],
        learning_rate=grpo.learning_rate, lr_scheduler_type="constant", max_grad_norm=grpo.max_grad_norm, beta=0.0,
        temperature=rollout.temperature, max_completion_length=config.policy.max_model_len // 2,
        max_tool_calling_iterations=rollout.max_calls, generation_kwargs={"max_new_tokens": rollout.max_turn_tokens},
        epsilon=grpo.clip_low, epsilon_high=grpo.clip_high,
    )  # fmt: skip
    records: list[dict[str, float]] = []

    class Clock(transformers.TrainerCallback):
        """Notes each optimiser step."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.started, self.cpu_started = time.perf_counter(), time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            used = {"step_s": time.perf_counter() - self.started, "cpu_s": time.process_time() - self.cpu_started}
            records.append(watch.take() | used)

    trainer = make_trainer_class(watch)(
        model=model, args=arguments, processing_class=processor, reward_funcs=[make_reward(processor.tokenizer)],
        train_dataset=datasets.Dataset.from_list(rows(workshop)), environment_factory=make_environment(workshop),
        callbacks=[Clock()],
    )  # fmt: skip
    trainer.train()
    workshop.close()
    return {"steps": records[spec["warmup_steps"] :], "versions": {"trl": _trl(), "transformers": transformers.__version__}}


def _trl() -> str:
    import trl

    return trl.__version__


if __name__ == "__main__":
    logging.getLogger("transformers").setLevel(logging.ERROR)
    Path(sys.argv[2]).write_text(json.dumps(run(json.loads(Path(sys.argv[1]).read_text()))))
