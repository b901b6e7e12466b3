"""A user's Swin2SR network (Conde et al., arXiv 2209.11345) behind `super_resolve`, through transformers.

Invariant: the network multiplies by its own trained factor; a call for another one is refused. Loaded by
`super_resolve` when its backend is "swin2sr".
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.backends import load_model
from medvista_ray.tools.base import BackendChoice, ToolOptions


class Swin2Sr:
    """The loaded network. Thread-safe: weights are only read."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the weights do not load."""
        from transformers import Swin2SRForImageSuperResolution

        del options
        self._network: Any = load_model(Swin2SRForImageSuperResolution, choice)
        self._device = choice.device

    def upscale(self, pixels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
        """See Upscaler. A grey picture goes through as three equal channels, whose mean comes back."""
        import torch

        trained = int(self._network.config.upscale)
        if factor != trained:
            raise ToolArgumentError(f"factor {factor}: this network was trained for factor {trained}")
        height, width, channels = pixels.shape
        inputs = torch.from_numpy(np.repeat(pixels, 3 // channels, axis=2)).permute(2, 0, 1)[None]
        with torch.inference_mode():
            outputs = self._network(pixel_values=inputs.to(self._device)).reconstruction
        fine = outputs[0, :, : height * factor, : width * factor].permute(1, 2, 0).float().cpu().numpy()
        return fine if channels == 3 else fine.mean(axis=2, keepdims=True)
