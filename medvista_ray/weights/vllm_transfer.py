"""The engines' end of the shared-memory transport, inside vLLM's process: a mapped safetensors file into a live model.

Invariant: after `finish_weight_update` the model computes exactly what a fresh engine on the same weights computes.
Two things would break it silently: linear layers that were repacked for the CPU at load (`weights.vllm_in_place` and
vLLM's layerwise reload redo them), and the LM head of tied embeddings, which receives no tensor of its own and keeps its
OLD repacked weights (`retie`). Called by vLLM only.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload
from vllm.model_executor.model_loader.reload.layerwise import (
    _place_kernel_tensors,  # pyright: ignore[reportPrivateUsage]
    get_layerwise_info,
)
from vllm.v1.core.sched import output as scheduler_output

from medvista_ray.weights.reading import SegmentReader
from medvista_ray.weights.vllm_in_place import InPlace
from medvista_ray.weights.vllm_packing import install
from medvista_ray.weights.vllm_plugin import bind_cores, end_with_parent, register

register()
bind_cores()
end_with_parent()
install()


def _keep_pixels(mm_features: Any, *_: Any, **__: Any) -> Any:
    """vLLM hands a request to the model without the pixels of pictures that a cached prefix covers. If it is preempted
    and the cache is gone by then, the engine dies of an "Encoder cache miss". Within one process dropping them saves
    nothing."""
    return mm_features


scheduler_output.strip_covered_mm_data = _keep_pixels  # pyright: ignore[reportPrivateImportUsage]


class RegisterOnImport:
    """A worker extension: importing this module does most of what is wanted of it."""

    def load_weight_file(self: Any, path: str) -> None:
        """The three steps of an update, in one call to the engine's process: each costs a millisecond or more of the pause."""
        self.start_weight_update()
        self.update_weights({"path": path})
        self.finish_weight_update()


@dataclass
class NoInit(WeightTransferInitInfo):
    """Shared memory needs no rendezvous."""


@dataclass
class FromFile(WeightTransferUpdateInfo):
    """One update: a safetensors file, or a model folder of them."""

    path: str = ""


class SharedMemoryTransfer(WeightTransferEngine[NoInit, FromFile]):
    """Loads a file's tensors into the running model: in place, or layer by layer where the model or the file needs that."""

    init_info_cls = NoInit
    update_info_cls = FromFile
    supports_draft_weight_update = False

    def init_transfer_engine(self, init_info: NoInit) -> None:
        """Note which heads share the embeddings' weights, while the model is whole.

        The configuration does not say: where the model's files hold a head of its own besides, vLLM turns
        `tie_word_embeddings` off and ties the two all the same once it finds them equal.
        """
        self._tied_heads = tied_heads(self.model)
        self._segments = SegmentReader()
        self._in_place = InPlace(self.model)
        # Layers without a tensor of their own (frozen ones) are expected, so don't warn of each.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)

    def start_weight_update(self) -> None:
        """Make the model whole again if the update before did not finish."""
        abandon_unfinished_update(self.model)

    def receive_weights(self, update_info: FromFile) -> None:
        """Load each tensor of the file. Raises what safetensors or the model's loader raises."""
        model: Any = self.model
        tensors = dict(self._segments.read(Path(update_info.path)))
        if not self._in_place.load(tensors):
            initialize_layerwise_reload(model)
            model.load_weights(iter(tensors.items()))

    def finish_weight_update(self) -> None:
        """Repack the layers that wait for it, put back those that got nothing, and give the LM head the new embeddings."""
        finalize_layerwise_reload(self.model, self.model_config)
        for head, embedding in self._tied_heads:
            retie(head, embedding)

    def shutdown(self) -> None:
        """Let go of the mapped segments."""
        self._segments.close()


def abandon_unfinished_update(model: torch.nn.Module) -> None:
    """Give back their old weights to the layers that a failed update left in loading state."""
    for layer in model.modules():
        info = get_layerwise_info(layer)
        if info.can_load():
            _place_kernel_tensors(layer, info)
            info.reset()


def tied_heads(model: torch.nn.Module) -> list[tuple[ParallelLMHead, VocabParallelEmbedding]]:
    """Heads that share an embedding's memory, with that embedding."""
    embeddings: list[Any] = [module for module in model.modules() if type(module) is VocabParallelEmbedding]
    heads: list[Any] = [module for module in model.modules() if isinstance(module, ParallelLMHead)]
    return [(h, e) for h in heads for e in embeddings if h.weight.data_ptr() == e.weight.data_ptr()]


def retie(head: ParallelLMHead, embedding: VocabParallelEmbedding) -> None:
    """Give the head the new embeddings, and its kernel a packing of them."""
    head.tie_weights(embedding)
    method: Any = head.quant_method
    method.process_weights_after_loading(head)
