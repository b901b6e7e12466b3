"""Published tensors straight into a running model's memory, by a plan that the model's own loaders drew up.

vLLM's layer-by-layer reload takes the model apart and calls every loader twice, which costs several times the copy. Here it is
done once, for the names, types and shapes that are published: the loaders run on tensors without memory, and what they
would have copied where is noted. Later updates only copy, and repack the layers that are repacked.

Invariant: a plan exists only if copies, and the processing of plain unquantized layers, are all that loading does; any
other operation, layer or device, or a part of a repacked layer that gets nothing, has no plan. Drawing one up, or not,
leaves the model as it was. Called by `weights.vllm_transfer`, which otherwise reloads layer by layer.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.model_executor.layers.attention import Attention, MMEncoderAttention, is_deferred_attention_layer
from vllm.model_executor.layers.linear import UnquantizedLinearMethod
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.model_loader.reload.layerwise import (
    _get_original_loader,  # pyright: ignore[reportPrivateUsage]
    _place_kernel_tensors,  # pyright: ignore[reportPrivateUsage]
    get_layerwise_info,
)
from vllm.model_executor.model_loader.reload.meta import restore_layer_on_meta
from vllm.model_executor.model_loader.reload.utils import get_layer_params_buffers, get_layer_tensors

Tensors = Mapping[str, torch.Tensor]
Place = tuple[torch.nn.Module, str, torch.Tensor]
"""A layer, the name of a tensor in it, and that tensor while a plan is drawn up."""
Signature = tuple[tuple[str, torch.dtype, torch.Size], ...]

logger = logging.getLogger(__name__)


class NoPlan(Exception):
    """Says what stands against one."""


@dataclass(frozen=True)
class View:
    """A part of a tensor, in elements from the tensor's first."""

    size: torch.Size
    stride: tuple[int, ...]
    offset: int
    is_whole: bool

    @classmethod
    def of(cls, part: torch.Tensor, whole: torch.Tensor) -> View:
        """Where `part` lies in `whole`."""
        offset = int(part.storage_offset() - whole.storage_offset())
        is_whole = (part.size(), part.stride(), offset) == (whole.size(), whole.stride(), 0)
        return cls(part.size(), part.stride(), offset, is_whole)

    def __call__(self, whole: torch.Tensor) -> torch.Tensor:
        return whole if self.is_whole else whole.as_strided(self.size, self.stride, whole.storage_offset() + self.offset)


@dataclass(frozen=True)
class Write:
    """A part of a parameter, and what it gets: a part of the tensor of that name, or a number."""

    to: View
    name: str
    part: View | None
    value: Any = None

    def __call__(self, parameter: torch.Tensor, tensors: Tensors) -> None:
        if self.part is None:
            self.to(parameter).fill_(self.value)
        else:
            self.to(parameter).copy_(self.part(tensors[self.name]))


@dataclass
class Target:
    """A parameter or buffer of a layer."""

    layer: Any
    name: str
    shape: torch.Tensor
    """As checkpoints know it, on the meta device; while the layer is repacked, its own has no elements."""
    own: torch.Tensor
    writes: list[Write] = field(default_factory=list[Write])

    @property
    def packed(self) -> bool:
        """Whether the model keeps it repacked only."""
        return self.own.shape != self.shape.shape

    def check(self) -> None:
        """Raise NoPlan unless `load` does all that this tensor needs."""
        method = getattr(self.layer, "quant_method", None)
        if is_deferred_attention_layer(self.layer) or type(method) not in _METHODS:
            raise NoPlan(f"{type(self.layer).__name__} is processed by {type(method).__name__}")
        if self.own.dtype != self.shape.dtype and self.name == "weight":
            raise NoPlan(f"{self.name} of {type(self.layer).__name__} is kept as {self.own.dtype}")
        if not self.packed:
            if self.own.stride() != self.shape.stride():
                raise NoPlan(f"{self.name} of {type(self.layer).__name__} lies otherwise in memory")
            return
        if type(method) is not UnquantizedLinearMethod or self.name != "weight" or self.own.numel():
            raise NoPlan(f"{self.name} of {type(self.layer).__name__} has another shape at work")
        written = torch.zeros(self.shape.shape, dtype=torch.bool)
        for write in self.writes:
            write.to(written).fill_(True)
        if not written.all():
            raise NoPlan(f"{type(self.layer).__name__} would be repacked with a part that got nothing")

    def load(self, tensors: Tensors) -> None:
        """Write to it, and repack the layer."""
        weight = torch.empty(self.shape.shape, dtype=self.own.dtype) if self.packed else self.own.data
        for write in self.writes:
            write(weight, tensors)
        method = getattr(self.layer, "quant_method", None)
        if method is None or self.name != "weight" or _is_plain(self.layer):
            return
        if not self.packed:
            method.process_weights_after_loading(self.layer)
            return
        self.layer.weight = torch.nn.Parameter(weight, requires_grad=False)
        try:
            method.process_weights_after_loading(self.layer)
        finally:
            self.layer.weight = self.own


_METHODS = (type(None), UnquantizedLinearMethod, UnquantizedEmbeddingMethod)


class InPlace:
    """Loads tensors into `model` where that is all it takes, and keeps the plan of the tensors seen last."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = model
        self._planned: tuple[Signature, list[Target] | None] | None = None

    def load(self, tensors: Tensors) -> bool:
        """Whether the model holds them now; if not, they need another way, and the model is as it was."""
        targets = self._targets(tensors)
        if targets is None:
            return False
        with torch.no_grad():
            for target in targets:
                target.load(tensors)
        return True

    def _targets(self, tensors: Tensors) -> list[Target] | None:
        signature = tuple((name, tensor.dtype, tensor.shape) for name, tensor in tensors.items())
        planned = self._planned
        if planned is None or planned[0] != signature or not _at_home(planned[1]):
            try:
                planned = signature, plan(self._model, tensors)
            # Whatever a loader has against these tensors, it will say once more when they are loaded the other way.
            except Exception as error:
                logger.info("weights are reloaded layer by layer: %s", error)
                planned = signature, None
            self._planned = planned
        return planned[1]


def plan(model: Any, tensors: Tensors) -> list[Target]:
    """What `model.load_weights` would write. Raises NoPlan, and what the loaders raise."""
    for layer in model.modules():
        if is_deferred_attention_layer(layer) and type(layer) not in (Attention, MMEncoderAttention):
            raise NoPlan(f"{type(layer).__name__} may derive weights of its own from others'")
    sources = {name: torch.empty(tensor.shape, dtype=tensor.dtype, device="meta") for name, tensor in tensors.items()}
    if any(not tensor.is_contiguous() for tensor in tensors.values()):
        raise NoPlan("the tensors are not contiguous")
    with _without_memory(model) as places, _Recorder() as recorder, torch.no_grad():
        model.load_weights(iter(sources.items()))
    names = {_storage(source): name for name, source in sources.items()}
    targets: dict[tuple[int, str], Target] = {}
    for part, value in recorder.writes:
        if part.numel() == 0:
            continue
        layer, name, shape = _known(places, part)
        target = targets.setdefault((id(layer), name), Target(layer, name, shape, getattr(layer, name)))
        target.writes.append(_write(part, shape, value, names, sources))
    used = {write.name for target in targets.values() for write in target.writes}
    if unused := sources.keys() - used:
        raise NoPlan(f"no layer takes {min(unused)}")
    for target in targets.values():
        if target.own.device.type != "cpu":
            raise NoPlan(f"the model is on {target.own.device}")
        target.check()
    return list(targets.values())


def _is_plain(layer: Any) -> bool:
    """Whether it multiplies with its weights as they are, so that nothing is to be done when they change."""
    return getattr(layer, "cpu_linear", None) is torch.nn.functional.linear


def _at_home(targets: Iterable[Target] | None) -> bool:
    """Whether the model still keeps the tensors that a plan writes to."""
    return all(getattr(target.layer, target.name) is target.own for target in targets or ())


def _write(
    part: torch.Tensor, shape: torch.Tensor, value: Any, names: Mapping[int, str], sources: Tensors
) -> Write:  # fmt: skip
    if not isinstance(value, torch.Tensor):
        return Write(View.of(part, shape), "", None, value)
    name = names.get(_storage(value))
    if name is None or part.shape != value.shape:
        raise NoPlan("a loader computes what it copies")
    return Write(View.of(part, shape), name, View.of(value, sources[name]))


def _known(places: Mapping[int, Place], part: torch.Tensor) -> Place:
    place = places.get(_storage(part))
    if place is None:
        raise NoPlan("a loader writes to what is no tensor of a layer")
    return place


def _storage(tensor: torch.Tensor) -> int:
    """Names the memory, real or not, that a tensor is a view of, while that lives."""
    return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]


@contextlib.contextmanager
def _without_memory(model: torch.nn.Module) -> Generator[dict[int, Place]]:
    """The model as checkpoints know it, on the meta device (biases excepted); behind it, as it was."""
    places: dict[int, Place] = {}
    layers = [(layer, get_layerwise_info(layer)) for layer in model.modules()]
    try:
        for layer, info in layers:
            info.kernel_tensors = get_layer_params_buffers(layer)
            info.kernel_non_persistent_buffers = set(layer._non_persistent_buffers_set)  # pyright: ignore[reportPrivateUsage]
            restore_layer_on_meta(layer, info)
            for name, tensor in get_layer_tensors(layer).items():
                places[_storage(tensor)] = layer, name, tensor
                _unwrap(tensor)
        yield places
    finally:
        for layer, info in layers:
            if info.kernel_tensors is not None:
                _place_kernel_tensors(layer, info)
            info.reset()


def _unwrap(tensor: Any) -> None:
    """Take off what a reload layer by layer has left around the tensor's loader: outside of one it loads nothing, silently."""
    if hasattr(tensor, "weight_loader"):
        tensor.weight_loader = _get_original_loader(tensor)


class _Recorder(TorchDispatchMode):
    """Notes writes and executes none; views are what they always are, and anything else is refused."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[tuple[torch.Tensor, Any]] = []
        """What is written to, and a tensor or a number."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.ops.aten.copy_.default, torch.ops.aten.fill_.Scalar):
            self.writes.append((args[0], args[1]))
            return args[0]
        if func.is_view:
            return func(*args, **(kwargs or {}))
        raise NoPlan(f"a loader uses {func}")
