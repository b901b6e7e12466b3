"""The learner at real sizes on one GPU: step time, tokens per second, share of the device's peak, memory.

    python benchmarks/gpu/learner.py --json learner.json [--shape internvl3-8b] [--num-groups 4] [--group-size 8]

One step is `GrpoTrainer.step`, the very learner of a run, on random episodes of two turns with two pictures each. The share
of the peak (MFU) counts the products that the step needs (Kaplan et al. 2020, App. B, and attention), not those that it makes
twice: 6 per weight and token, 12 x layers x width x half the length for causal attention; pictures count once per distinct
picture, with 2 instead of 6 where the vision tower is frozen.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

from benchmarks.gpu.device import device_facts, median_s, parse, parser, peak_memory_gib, peak_tflops
from benchmarks.gpu.shapes import SHAPES, build_policy, random_groups
from benchmarks.harness import write_figures
from medvista_ray.config import TrainConfig
from medvista_ray.models.policy import Policy
from medvista_ray.types import Group
from trainers.grpo import GrpoTrainer


def measure(args: Namespace) -> dict[str, Any]:
    """The figures of one shape."""
    dtype = getattr(torch, args.dtype)
    policy = build_policy(args.shape, args.device, dtype, args.work / args.shape)
    groups = random_groups(
        policy, SHAPES[args.shape].image_side, args.num_groups, args.group_size, args.num_text, args.num_sampled, args.seed
    )
    config = TrainConfig.model_validate(
        {
            "policy": {"train_vision": args.train_vision},
            "learner": {"num_gpus": int(args.device == "cuda"), "bf16": args.device == "cuda"},
            "grpo": {"tokens_per_microbatch": args.tokens_per_microbatch, "learning_rate": 1e-6},
        }
    )
    trainer = GrpoTrainer(policy, config)
    step_s = median_s(lambda: trainer.step(groups), args.num_repeats, args.device)
    num_tokens = sum(len(episode.token_ids) for group in groups for episode in group.episodes)
    tflops = step_flops(policy, groups, args.train_vision) / step_s / 1e12
    peak = peak_tflops(args.device)
    return {
        "step_s": step_s,
        "tokens_per_s": num_tokens / step_s,
        "tflops": tflops,
        "mfu": tflops / peak if peak else None,
        "peak_memory_gib": peak_memory_gib(args.device),
        "num_parameters": sum(weight.numel() for weight in policy.model.parameters()),
        "num_episodes": args.num_groups * args.group_size,
        "num_tokens": num_tokens,
    }


def step_flops(policy: Policy, groups: Sequence[Group], train_vision: bool) -> float:
    """Floating-point operations that a step on `groups` needs."""
    text = policy.config.get_text_config()
    vision = sum(w.numel() for name in policy.family.vision_modules for w in getattr(policy.model.model, name).parameters())
    embedding = policy.model.get_input_embeddings().weight.numel()
    weights = sum(w.numel() for w in policy.model.parameters()) - vision - embedding * (not text.tie_word_embeddings)
    lengths = [len(episode.token_ids) for group in groups for episode in group.episodes]
    attention = 12 * text.num_hidden_layers * text.hidden_size * sum(length**2 / 2 for length in lengths)
    pictures = {image.tobytes(): image for group in groups for episode in group.episodes for image in episode.images}
    patches = sum(policy.num_image_tokens(image) * 4 for image in pictures.values())  # both families join 2 x 2 patches
    return 6.0 * weights * sum(lengths) + attention + (6.0 if train_vision else 2.0) * vision * patches


def main(arguments: list[str] | None = None) -> int:
    """Measure; the JSON goes to --json and to the screen."""
    made = parser("GRPO steps of a policy of real size with random weights.")
    made.add_argument("--num-groups", type=int, default=4)
    made.add_argument("--group-size", type=int, default=8)
    made.add_argument("--num-text", type=int, default=400, help="tokens of question and reply (default: 400)")
    made.add_argument("--num-sampled", type=int, default=200, help="sampled tokens of an episode (default: 200)")
    made.add_argument("--tokens-per-microbatch", type=int, default=16384)
    made.add_argument("--train-vision", action="store_true", help="train the vision tower too")
    args = parse(made, arguments)
    write_figures(args.json, measure(args) | device_facts(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
