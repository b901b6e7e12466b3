"""A worker extension that tells a test which way the engine's process took; named to vLLM in place of the package's own."""

from __future__ import annotations

from typing import Any

import torch

from medvista_ray.weights import vllm_transfer

_initialize: Any = vllm_transfer.initialize_layerwise_reload
_reloads: list[torch.nn.Module] = []


def _counted(model: torch.nn.Module) -> None:
    _reloads.append(model)
    _initialize(model)


vllm_transfer.initialize_layerwise_reload = _counted


class CountsReloads(vllm_transfer.RegisterOnImport):
    """The package's, and a count."""

    def num_layered_updates(self) -> int:
        """How many updates went layer by layer."""
        return len(_reloads)
