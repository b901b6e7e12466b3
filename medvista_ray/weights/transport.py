"""How a policy version travels from the learner to the engines: one small interface, several transports.

A publisher runs beside the learner and hands out manifests; the receiving end is a vLLM weight-transfer engine
(`weights.vllm_plugin`). Called by the learner actor.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch

from medvista_ray.registry import Registry
from medvista_ray.weights.manifest import Manifest

NamedTensors = Iterable[tuple[str, torch.Tensor]]
"""Parameter names as in `model.named_parameters()`, with their values."""


class Publisher(Protocol):
    """The learner's end of a transport. Made as `TRANSPORTS.load(name)(run_id)`."""

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Make the tensors readable by every engine as `version`. Raises WeightUpdateError if they cannot be stored."""
        ...

    def close(self) -> None:
        """Give back what the published versions hold. Idempotent."""
        ...


TRANSPORTS = Registry("transport", {"shared_memory": "medvista_ray.weights.shared_memory:SharedMemoryPublisher"})
