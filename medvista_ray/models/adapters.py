"""LoRA: low-rank adapters of the text model's projections, trained in place of its weights (arXiv 2106.09685), by peft.

Invariant: what leaves this process is merged, under the names that the weights have without adapters, so that engines
and model folders know nothing of them. Called by whoever loads a policy for training, by publishing and by checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from medvista_ray.config import PolicyConfig
from medvista_ray.models.policy import ADAPTER_MARK, Policy, trainable_parameters

TARGETS = r".*language_model\.layers\.\d+\.(self_attn|mlp)\.\w+_proj"
ADAPTER = "default"


def add_adapters(policy: Policy, config: PolicyConfig) -> None:
    """Put adapters of `config.lora_rank` into `policy`, in place; at first they change nothing. Drawn from torch's seed."""
    from peft import LoraConfig, inject_adapter_in_model

    settings = LoraConfig(r=config.lora_rank, lora_alpha=config.lora_alpha, lora_dropout=0.0, target_modules=TARGETS)
    inject_adapter_in_model(settings, policy.model, adapter_name=ADAPTER)
    policy.model.eval()


def has_adapters(policy: Policy) -> bool:
    """Whether `add_adapters` was called."""
    return any(True for _ in _adapted(policy))


def merged_weights(policy: Policy, train_vision: bool | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights by their names without adapters, each adapted one with its adapter added.

    With `train_vision` given only what training changes (see `trainable_parameters`); with None all that a model folder holds.
    """
    adapted = dict(_adapted(policy))
    for name, layer in adapted.items():
        yield f"{name}.weight", layer.base_layer.weight.detach() + layer.get_delta_weight(ADAPTER).detach()
    if train_vision is None:
        others: dict[str, torch.Tensor] = policy.model.state_dict()
    else:
        others = dict(trainable_parameters(policy, train_vision))
    for name, tensor in others.items():
        owner = name.partition(ADAPTER_MARK)[0].removesuffix(".base_layer.weight")
        if owner not in adapted:
            yield name.replace(".base_layer.", "."), tensor.detach()


def _adapted(policy: Policy) -> Iterator[tuple[str, Any]]:
    for name, module in policy.model.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "base_layer"):
            yield name, module
