"""Pre-train the base of the tiny policy: `python -m trainers.pretrain_tiny --out FOLDER --steps N`.

Owns the recipe behind the weights that the package ships (recipe.json beside them records arguments, seeds, versions and
the weights' sha256). Invariant: only train subjects and train concepts are seen, and no tool call ever. Run by hand, once.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.logprobs import sampled_logprobs
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.models.tiny_architecture import build_tiny_model, build_tiny_processor, save_policy_folder
from medvista_ray.models.tiny_tokenizer import build_tiny_tokenizer
from medvista_ray.protocol import system_prompt
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.pictures import policy_picture
from medvista_ray.types import AnswerKind, Episode, EpisodeStatus, Observation, Split, Task
from trainers.pretrain_data import PretrainMixture, Sample, corpus

VOCAB_SIZE = 4096
TOKENIZER_SAMPLES = 3000
PROTOCOL_TEXTS = (
    system_prompt((), 0),
    'Think, then call one tool: <think>...</think><tool_call>{"name": "...", "arguments": {...}}</tool_call>',
    "At most calls. Boxes are [x0, y0, x1, y1], integers 0..1000. Tools:",
    "zoom_in(image_index: int = 0, bbox: [x0, y0, x1, y1], scale?: float): crop and enlarge a region.",
    "segment_medical(image_index: int = 0, bbox: [x0, y0, x1, y1]): outline the structure in a box.",
    "measure(bbox?: [x0, y0, x1, y1], mask_index?: int, image_index: int = 0, reference_bbox?: [x0, y0, x1, y1], "
    "reference_mask_index?: int): size, area, mean value and center of a box or mask.",
    "search_text(query: str, k?: int = 3): look up codes and terms by their words.",
    '{"name": "zoom_in", "arguments": {"image_index": 0, "bbox": [1, 2, 3, 4]}}',
    '{"name": "segment_medical", "arguments": {"image_index": 0, "bbox": [1, 2, 3, 4]}}',
    '{"name": "measure", "arguments": {"mask_index": 0}}',
    '{"name": "measure", "arguments": {"bbox": [1, 2, 3, 4], "reference_bbox": [1, 2, 3, 4]}}',
    '{"name": "search_text", "arguments": {"query": "term"}}',
    "It is too small, I zoom in. I need a closer look. I outline the structure. First the outline. I measure it. Now I "
    "measure. I look it up. I search for the term. Now I know. I have it.",
    "image 1 shows this region. mask 0: box [1, 2, 3, 4]. reference mean 1 HU: region is higher; region is smaller",
)
"""Prompts, calls and replies, for the tokenizer's merges only: the base is not trained on them."""
NO_TASK = Task(
    id="pretrain", source="", family="", split=Split.TRAIN, subject="", modality="", question="", answer="", kind=AnswerKind.TEXT
)


def main() -> None:
    """Parse arguments, train, save."""
    arguments = _arguments()
    started = time.perf_counter()
    torch.manual_seed(arguments.seed)
    random.seed(arguments.seed)
    torch.set_num_threads(arguments.threads)
    console = Console()
    policy = _policy(arguments)
    losses = train(policy, arguments, console)
    recipe = vars(arguments) | {
        "out": "",
        "vocab_size": VOCAB_SIZE,
        "loss_end": round(float(np.mean(losses[-50:])), 4),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "torch": torch.__version__,
    }
    _save(policy, arguments.out, recipe)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps")
    parser.add_argument("--batch", type=int, default=32, help="samples per step")
    parser.add_argument("--lr", type=float, default=1e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data")
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--decay", action="store_true", help="decay the rate to a tenth (the last phase of a run)")
    parser.add_argument("--resume", action="store_true", help="start from the weights in --out")
    return parser.parse_args()


def _policy(arguments: argparse.Namespace) -> Policy:
    if not arguments.resume:
        tokenizer = build_tiny_tokenizer(corpus(TOKENIZER_SAMPLES, arguments.seed, list(PROTOCOL_TEXTS) * 100), VOCAB_SIZE)
        processor = build_tiny_processor(tokenizer)
        save_policy_folder(build_tiny_model(processor.tokenizer, arguments.seed), processor, arguments.out)
    return load_policy(arguments.out)


def train(policy: Policy, arguments: argparse.Namespace, console: Console) -> list[float]:
    """Cross-entropy on the answers."""
    weights = [w for w in policy.model.parameters() if w.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=arguments.lr, betas=(0.9, 0.98), weight_decay=0.02)
    chat = ChatFormat.from_policy(policy.tokenizer, policy.model_type)
    mixture = iter(PretrainMixture(arguments.seed + (1000 if arguments.resume else 0)))
    losses: list[float] = []
    started = time.perf_counter()
    policy.model.train()
    for step in range(arguments.steps):
        for group in optimiser.param_groups:
            group["lr"] = arguments.lr * _schedule(step, arguments.steps, arguments.decay)
        losses.append(_step(policy, chat, mixture, arguments.batch, optimiser))
        if step % 50 == 49:
            speed = (step + 1) / (time.perf_counter() - started)
            console.print(f"step {step + 1}/{arguments.steps} loss {np.mean(losses[-50:]):.3f} {speed:.2f} steps/s")
        if step % 250 == 249:
            _save(policy, arguments.out, {"interim": step + 1})
    return losses


def _schedule(step: int, total: int, decay: bool, warmup: int = 50) -> float:
    """Share of the peak rate: a linear warm-up, then constant, or a cosine to a tenth in the last phase."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup))) if decay else 1.0


def _step(policy: Policy, chat: ChatFormat, mixture: Iterator[Sample], batch: int, optimiser: torch.optim.Optimizer) -> float:
    episodes = [episode_of(next(mixture), policy, chat) for _ in range(batch)]
    num_tokens = sum(episode.num_sampled for episode in episodes)
    total = 0.0
    optimiser.zero_grad(set_to_none=True)
    for indices in split_microbatches(episodes, 4096):
        with torch.autocast("cpu", torch.bfloat16):
            values = sampled_logprobs(policy, build_batch([episodes[i] for i in indices], policy), 1.0).values
        loss = -values.sum() / num_tokens
        loss.backward()
        total += float(loss.detach())
    torch.nn.utils.clip_grad_norm_(policy.model.parameters(), 1.0)
    optimiser.step()
    return total


def episode_of(sample: Sample, policy: Policy, chat: ChatFormat) -> Episode:
    """A sample as a one-turn episode in the no-tools prompt; the answer's tokens are the trained ones."""
    prompt = chat.begin(system_prompt((), 0), Observation(sample.question, sample.images))
    side = int(policy.config.vision_config.image_size[0])
    pictures = [policy_picture(image, side) for image in sample.images]
    answer = chat.encode_text(f"<think>{sample.think}</think><answer>{sample.answer}</answer>")
    prompt = policy.expand(prompt, pictures)
    mask = np.zeros(len(prompt) + len(answer), np.bool_)
    mask[len(prompt) :] = True
    return Episode(
        task=NO_TASK,
        status=EpisodeStatus.ANSWERED,
        turns=[],
        answer=sample.answer,
        token_ids=np.array([*prompt, *answer], np.int32),
        loss_mask=mask,
        logprobs=np.zeros(len(mask), np.float32),
        versions=np.full(len(mask), -1, np.int32),
        images=pictures,
    )


def _save(policy: Policy, folder: Path, recipe: dict[str, Any]) -> None:
    """Write the folder (bf16) and its recipe with the weights' sha256."""
    save_policy_folder(policy.model, build_tiny_processor(policy.tokenizer), folder, torch.bfloat16)
    digest = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    (folder / "recipe.json").write_text(json.dumps(recipe | {"sha256": digest}, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
