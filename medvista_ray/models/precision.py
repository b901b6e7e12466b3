"""In which numbers a learner multiplies: bf16 only where the device has instructions for it.

A CPU without them emulates bf16, which takes five to ten times as long as fp32 and is less exact. Called by trainers and by
whoever chooses threads for them.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from medvista_ray.config import LearnerConfig


@cache
def cpu_multiplies_bf16() -> bool:
    """Whether this CPU has instructions for products of bf16 (AVX512-BF16 or AMX)."""
    capabilities: dict[str, Any] = dict(torch.cpu.get_capabilities())
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def uses_bf16(learner: LearnerConfig) -> bool:
    """Whether a process of this learner, on this machine, computes under bf16 autocast."""
    return learner.bf16 and (learner.num_gpus > 0 or cpu_multiplies_bf16())
