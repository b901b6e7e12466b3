"""Which linear layers vLLM repacks for the CPU: those that gain from it, and none that is never multiplied with.

vLLM repacks every layer's weights for oneDNN when they are loaded. Each costs 0.4 to 0.8 ms whatever its size, and again
at every weight update, while the engine stands still; in float32 only large layers are then faster. So small ones
keep their weights as they are, which an update can write to, and embeddings are repacked when they first serve as a head.

Invariant: whichever way a layer goes, it multiplies with the weights that were loaded last. Called by vLLM, in the engine's
process, in place of its `dispatch_cpu_unquantized_gemm`, once `install` was called there.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.layers import utils
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding

SMALL = 1 << 18
"""Weights from which on a float32 layer is repacked. Measured with AVX2, one thread, 8 to 64 rows: below, 0-10 % of a
layer's time either way; above, repacked ones take 5-30 % less."""

_vllm_dispatch: Any = utils.dispatch_cpu_unquantized_gemm


def install() -> None:
    """Have vLLM ask `dispatch` in this process. Idempotent."""
    utils.dispatch_cpu_unquantized_gemm = dispatch


def dispatch(layer: Any, remove_weight: bool) -> None:
    """Set `layer.cpu_linear`; a layer that is repacked loses its plain weights if `remove_weight` says so."""
    if type(layer) is VocabParallelEmbedding:
        layer.cpu_linear = _packed_when_used(layer)
    elif is_small(layer.weight):
        layer.cpu_linear = torch.nn.functional.linear
    else:
        _vllm_dispatch(layer, remove_weight=remove_weight)


def is_small(weight: torch.Tensor) -> bool:
    """Whether repacking these weights gains nothing; other types gain at any size."""
    return weight.ndim == 2 and weight.dtype == torch.float32 and weight.numel() < SMALL and not weight.is_meta


def _packed_when_used(embedding: Any) -> Any:
    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        _vllm_dispatch(embedding, remove_weight=False)
        return embedding.cpu_linear(x, weight, bias)

    return linear
