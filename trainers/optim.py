"""What both training loops share: the device, the optimiser and its learning-rate schedule.

Invariant: norms, biases and other vectors are never decayed. Called by trainers.sft and trainers.grpo.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.tensor import DTensor

from medvista_ray.config import LearnerConfig
from medvista_ray.models.precision import uses_bf16


def make_accelerator(learner: LearnerConfig) -> Accelerator:
    """Device and precision of this process: a GPU if the learner has one, bf16 autocast if asked for and worth it.

    Several processes must call it together."""
    if learner.num_gpus == 0:
        torch.set_num_threads(learner.num_threads)
    return Accelerator(mixed_precision="bf16" if _agreed_bf16(learner) else "no", cpu=learner.num_gpus == 0)


def make_optimizer(
    parameters: Iterable[torch.nn.Parameter], learning_rate: float, weight_decay: float, eps: float = 1e-8
) -> torch.optim.AdamW:
    """AdamW (arXiv 1711.05101) with betas 0.9, 0.95; weight decay on matrices only."""
    weights = list(parameters)
    groups: list[dict[str, Any]] = [
        {"params": [w for w in weights if w.ndim >= 2], "weight_decay": weight_decay},
        {"params": [w for w in weights if w.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=learning_rate, betas=(0.9, 0.95), eps=eps, foreach=True
    )


def _agreed_bf16(learner: LearnerConfig) -> bool:
    """Whether every process uses it: nodes may differ, and shards travel in one dtype."""
    found = [uses_bf16(learner)]
    if dist.is_initialized() and learner.num_gpus == 0:
        found *= dist.get_world_size()
        dist.all_gather_object(found, found[0])
    return all(found)


def warmup_constant(step: int, warmup_steps: int) -> float:
    """Share of the peak rate at update `step` (from 0): linear to 1 over `warmup_steps`, then 1."""
    return min(1.0, (step + 1) / (warmup_steps + 1))


def warmup_linear(step: int, warmup_steps: int, num_steps: int, floor: float = 0.1) -> float:
    """Share of the peak rate at update `step` (from 0): linear warm-up, then linear down to `floor` at the last."""
    if step < warmup_steps:
        return warmup_constant(step, warmup_steps)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    return 1.0 - (1.0 - floor) * progress


def warmup_cosine(step: int, warmup_steps: int, num_steps: int, floor: float = 0.1) -> float:
    """Share of the peak rate at update `step` (from 0): linear warm-up.

    Then half a cosine down to `floor` at the end.
    """
    if step < warmup_steps:
        return (step + 1) / (warmup_steps + 1)
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))


def clip_gradients(parameters: Iterable[torch.nn.Parameter], max_norm: float) -> float:
    """Scale the gradients to a global norm of at most `max_norm`; the norm before, over all processes."""
    norm = torch.nn.utils.clip_grad_norm_(list(parameters), max_norm)
    return float(norm.full_tensor() if isinstance(norm, DTensor) else norm)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Use `learning_rate` from the next update on."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
