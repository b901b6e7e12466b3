"""Weights that stay on the GPU: vLLM's own `ipc` (same GPU or node) and `nccl` (several nodes) transfer engines.

Publishing copies the trained tensors aside on the learner's device. An engine that wants a version asks for it; the
learner's thread then runs vLLM's transfer, in buckets, to that engine alone: a group of two, made anew for each life of
an engine, so that engines come, go and die without the others noticing. (One broadcast to all would cost the learner
less bandwidth, and a hang whenever one of them is gone.)

Invariant: what is sent is one version, whole, though the learner trains on meanwhile. Called by the learner actor. Needs
CUDA; written against vLLM 0.32 and not run on a GPU by this project yet.
"""

from __future__ import annotations

import uuid
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from medvista_ray.config import WeightsConfig
from medvista_ray.errors import ConfigError, WeightUpdateError
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.transport import NamedTensors

if TYPE_CHECKING:
    from vllm.distributed.weight_transfer.base import TrainerInitInfo

Tensors = dict[str, torch.Tensor]
MakeClient = Callable[[], Any]
"""Makes vLLM's VLLMWeightSyncClient of one engine: init, start, update, finish."""


def require_cuda(transport: str) -> None:
    """Raise ConfigError unless this process has a CUDA device."""
    if not torch.cuda.is_available():
        raise ConfigError(
            f"weights.transport = {transport!r} needs a CUDA device in the learner and in every generator "
            "(learner.num_gpus, generator.num_gpus), and this process has none; without GPUs use 'shared_memory' on one "
            "node, 'object_store' on several"
        )


def tensor_checksum(tensor: torch.Tensor) -> str:
    """CRC-32 of a tensor's bytes, 8 hex digits. They come to the host for it: for finding faults, not for every day."""
    return f"{zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data):08x}"


class DevicePublisher(ABC):
    """What the two have in common: the copy aside, and a transfer per engine."""

    transport = ""

    def __init__(self, run_id: str, config: WeightsConfig | None = None, **_: object) -> None:
        require_cuda(self.transport)
        self._config = config or WeightsConfig(transport=self.transport)
        self._newest: tuple[Manifest, Tensors] | None = None
        self._senders: dict[str, _Sender] = {}

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Copy the tensors aside, on their device. A transfer that still sends the version before keeps that alive."""
        tensors = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in named_tensors}
        if not tensors:
            raise WeightUpdateError("no tensors to publish")
        checksums = tuple(map(tensor_checksum, tensors.values())) if self._config.checksum else ()
        manifest = Manifest(
            version=version,
            key=uuid.uuid4().hex,
            num_tensors=len(tensors),
            num_bytes=sum(tensor.nbytes for tensor in tensors.values()),
            bucket_bytes=self._config.bucket_bytes,
            checksums=checksums,
        )
        torch.cuda.synchronize()
        self._newest = (manifest, tensors)
        return manifest

    def send(self, manifest: Manifest, receiver: str, life: int, make_client: MakeClient) -> None:
        """Transfer the version to the engine `receiver`, whose `life` changes with its process; returns when it has
        finished. Called from a thread per transfer, for a transfer to an engine that died may never return.

        Raises WeightUpdateError if a later version has taken its place, and what vLLM raises.
        """
        newest = self._newest
        if newest is None or newest[0].key != manifest.key:
            raise WeightUpdateError(f"version {manifest.version} is no longer kept by the learner")
        sender = self._senders.pop(receiver, None)
        if sender is None or sender.life != life:
            source = make_source(newest[1])
            sender = _Sender(life, source, self._connect(source, newest[1], make_client()))
        sender.source.tensors = newest[1]
        try:
            sender.vllm.send_weights()
        finally:
            sender.source.tensors = {}
        self._senders[receiver] = sender  # one that failed is not used again

    def close(self) -> None:
        """End the transfers' groups and let go of the copy."""
        for sender in self._senders.values():
            sender.vllm.shutdown()
        self._senders.clear()
        self._newest = None

    @abstractmethod
    def init_info(self, buffer_bytes: int) -> TrainerInitInfo:
        """What vLLM's trainer side is set up with."""

    def _connect(self, source: Any, tensors: Tensors, client: Any) -> Any:
        from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

        # A tensor is never cut: the buffer must hold the largest.
        buffer_bytes = max(self._config.bucket_bytes, *(tensor.nbytes for tensor in tensors.values()))
        return WeightTransferTrainerFactory.trainer_init(self.init_info(buffer_bytes), client=client, source=source)


class CudaIpcPublisher(DevicePublisher):
    """Engines on the learner's GPU, or on one that reaches its memory, read a shared buffer there, bucket by bucket."""

    transport = "cuda_ipc"

    def init_info(self, buffer_bytes: int) -> TrainerInitInfo:
        """No rendezvous: handles of the buffer travel with each bucket."""
        from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo

        return IPCTrainerInitInfo(packed=True, packed_buffer_size_bytes=buffer_bytes, rank=0)


class NcclPublisher(DevicePublisher):
    """Engines on any node: the learner is rank 0 of a group with the engine's one worker."""

    transport = "nccl"

    def init_info(self, buffer_bytes: int) -> TrainerInitInfo:
        """Rendezvous at a free port of this machine."""
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        return NCCLTrainerInitInfo(
            # Not by the host's name, which is often that of the loopback.
            master_address=get_ip(),
            master_port=get_open_port(),
            world_size=2,
            packed=True,
            packed_buffer_size_bytes=buffer_bytes,
            rank=0,
        )


@dataclass(frozen=True)
class _Sender:
    """vLLM's trainer side of the transfers to one process."""

    life: int
    source: Source
    vllm: Any


class Source:
    """vLLM's WeightSource over a version's tensors (its abstract base is joined in `make_source`)."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors

    def metadata(self) -> list[Any]:
        """Name, type and shape of each, in the order of iteration."""
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in self.tensors.items()]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(self.tensors.items())


def make_source(tensors: Tensors) -> Any:
    """A `Source` that is one of vLLM's; vLLM is imported here."""
    from vllm.distributed.weight_transfer.base import WeightSource

    return type("VersionSource", (Source, WeightSource), {})(tensors)
