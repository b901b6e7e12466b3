"""The engines' end of the GPU transports, inside vLLM's process: vLLM's own `ipc` and `nccl` engines, made safe to fail.

Invariant: a whole version has arrived and was checked before the model sees any of it. So a transfer that fails
half-way leaves the version before in place; the price is room for one copy of the trained tensors on the device. Called
by vLLM only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.ipc_engine import IPCWeightTransferEngine
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.device import tensor_checksum
from medvista_ray.weights.vllm_transfer import abandon_unfinished_update, retie, tied_heads

NamedTensor = tuple[str, torch.Tensor]


@dataclass
class Expected(WeightTransferUpdateInfo):
    """What must have arrived: the last message of an update."""

    num_tensors: int = 0
    num_bytes: int = 0
    checksums: list[str] = field(default_factory=list[str])
    """Of each tensor in the order of arrival; empty if they were not asked for."""

    def check(self, arrived: list[NamedTensor]) -> None:
        """Raise WeightUpdateError naming what differs."""
        found = len(arrived), sum(tensor.nbytes for _, tensor in arrived)
        if found != (self.num_tensors, self.num_bytes):
            raise WeightUpdateError(
                f"{found[0]} tensors of {found[1]} bytes arrived, expected {self.num_tensors} of {self.num_bytes}"
            )
        # No checksums: nothing to compare.
        for (name, tensor), expected in zip(arrived, self.checksums, strict=False):
            if (checksum := tensor_checksum(tensor)) != expected:
                raise WeightUpdateError(f"{name} arrived with checksum {checksum}, expected {expected}")


class _Collector:
    """Stands where a receiving engine expects the model."""

    def __init__(self, arrived: list[NamedTensor]) -> None:
        self._arrived = arrived

    def load_weights(self, weights: Iterable[NamedTensor]) -> None:
        self._arrived.extend(weights)


class _Staged:
    """Before one of vLLM's engines in the order of resolution: collects, checks, and only then loads."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._arrived: list[NamedTensor] = []

    def parse_update_info(self: Any, update_dict: dict[str, Any]) -> Any:
        """vLLM's, or `Expected`."""
        if "num_tensors" in update_dict:
            return Expected(**update_dict)
        return super().parse_update_info(update_dict)  # pyright: ignore[reportAttributeAccessIssue]

    def start_weight_update(self) -> None:
        """Forget what a failed update left; the model goes on as it is."""
        self._arrived.clear()

    def receive_weights(self: Any, update_info: Any) -> None:
        """One portion, put aside."""
        if isinstance(update_info, Expected):
            update_info.check(self._arrived)
            return
        model, self.model = self.model, _Collector(self._arrived)
        try:
            super().receive_weights(update_info)  # pyright: ignore[reportAttributeAccessIssue]
        finally:
            self.model = model

    def finish_weight_update(self: Any) -> None:
        """Load what has arrived, layer by layer; vLLM's engine finishes."""
        heads = tied_heads(self.model)
        abandon_unfinished_update(self.model)
        initialize_layerwise_reload(self.model)
        self.model.load_weights(self._arrived)
        super().finish_weight_update()  # pyright: ignore[reportAttributeAccessIssue]
        for head, embedding in heads:
            retie(head, embedding)
        if torch.cuda.is_available():
            torch.cuda.synchronize()  # before the memory of what arrived is used again
        self._arrived.clear()


class StagedIpc(_Staged, IPCWeightTransferEngine):
    """vLLM's `ipc`."""


class StagedNccl(_Staged, NCCLWeightTransferEngine):
    """vLLM's `nccl`."""
