"""How a policy version travels from the learner to the engines: one small interface, several transports.

A publisher runs beside the learner and hands out manifests; the receiving end is a vLLM weight-transfer engine
(`weights.vllm_plugin`). What lies between differs:

- shared_memory: the engines of the learner's node map the segment that the manifest names;
- object_store: buckets go to an object store; one relay per node makes a segment of them again (`weights.object_store`);
- cuda_ipc, nccl: tensors stay on the learner's device; the learner sends them when an engine asks (`weights.device`).

Called by the learner and the generator actors. Importing this module is cheap.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from medvista_ray.registry import Registry
from medvista_ray.weights.manifest import Manifest

if TYPE_CHECKING:
    import torch

NamedTensors = Iterable[tuple[str, "torch.Tensor"]]
"""Parameter names as in `model.named_parameters()`, with their values."""


class Publisher(Protocol):
    """The learner's end of a transport. Made as `TRANSPORTS.load(name)(run_id, config.weights, put=...)`; `put` is for those
    that use a store."""

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Make the tensors readable by every engine as `version`. Raises WeightUpdateError if they cannot be stored."""
        ...

    def close(self) -> None:
        """Give back what the published versions hold. Idempotent."""
        ...


TRANSPORTS = Registry(
    "transport",
    {
        "shared_memory": "medvista_ray.weights.shared_memory:SharedMemoryPublisher",
        "object_store": "medvista_ray.weights.object_store:ObjectStorePublisher",
        "cuda_ipc": "medvista_ray.weights.device:CudaIpcPublisher",
        "nccl": "medvista_ray.weights.device:NcclPublisher",
    },
)
