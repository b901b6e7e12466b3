"""Promptable networks behind `segment_prompt`: the carried LiteMedSAM (boxes) and a user's SAM 2 (boxes and points).

SAM 2 (Ravi et al., arXiv 2408.00714) loads through transformers from a folder of the user's, MedSAM2 (Ma et al., arXiv
2504.03600) likewise once converted to that format. Invariant: a picture's slow encoding is computed once and kept within
a bound, by content hash.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.backends import load_model
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.localize.embedding_cache import EmbeddingCache
from medvista_ray.tools.localize.finding import Prompt
from medvista_ray.types import MedImage

_MIB = 1 << 20
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
"""ImageNet's, which SAM 2 was trained with."""


class LiteMedSamSegmenter:
    """The network of `segment_medical`. Thread-safe."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the weights are not in the cache."""
        from medvista_ray.assets import asset_dir
        from medvista_ray.tools.localize.litemedsam import LiteMedSam

        del choice
        self.network = LiteMedSam(asset_dir("medsam-lite"), options.precision)
        self.cache = EmbeddingCache(options.embedding_cache_mib * _MIB)

    def segment(self, image: MedImage, prompt: Prompt) -> tuple[NDArray[np.bool_], float]:
        """See Segmenter. Boxes only: points were not in its training."""
        if prompt.box is None or prompt.points:
            raise ToolArgumentError("this backend takes a bbox, no points")
        embedding = self.cache.get(image.key, lambda: self.network.encode(image.display()))
        mask, score = self.network.decode(embedding, prompt.box, image.size)
        return mask, min(max(score, 0.0), 1.0)


class Sam2Segmenter:
    """A user's SAM 2. Thread-safe: weights are only read."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the weights do not load."""
        from transformers import Sam2Model

        self._network: Any = load_model(Sam2Model, choice)
        self._device = choice.device
        self._side = _side(self._network.config)
        self._shapes: list[tuple[int, ...]] = []
        self.cache = EmbeddingCache(options.embedding_cache_mib * _MIB)
        self._encode(np.zeros((8, 8, 3), np.uint8))  # learns the shapes of the feature maps; a network that fails, fails here

    def segment(self, image: MedImage, prompt: Prompt) -> tuple[NDArray[np.bool_], float]:
        """See Segmenter. Of the masks that the network offers, the one that it trusts most."""
        import torch

        embedding = self.cache.get(image.key, lambda: self._encode(image.display()))
        inputs: dict[str, Any] = {"image_embeddings": self._maps(embedding)}
        scale = self._side / 1000.0
        if prompt.box is not None:
            inputs["input_boxes"] = torch.tensor([[prompt.box]], dtype=torch.float32, device=self._device) * scale
        if prompt.points:
            inputs["input_points"] = torch.tensor([[prompt.points]], dtype=torch.float32, device=self._device) * scale
            inputs["input_labels"] = torch.tensor([[prompt.labels]], device=self._device)
        with torch.inference_mode():
            output = self._network(**inputs, multimask_output=prompt.box is None)
            scores = output.iou_scores[0, 0]
            best = int(scores.argmax())
            logits = output.pred_masks[0, 0, best][None, None].float()
            logits = torch.nn.functional.interpolate(logits, size=image.size, mode="bilinear", align_corners=False)
        return (logits[0, 0] > 0.0).cpu().numpy(), min(max(float(scores[best]), 0.0), 1.0)

    def _encode(self, display: NDArray[np.uint8]) -> NDArray[np.float16]:
        """The feature maps of a picture, one after the other in one flat array."""
        import torch

        square = Image.fromarray(display).resize((self._side, self._side), Image.Resampling.BILINEAR)
        values = (np.asarray(square, dtype=np.float32) / 255.0 - _MEAN) / _STD
        pixels = torch.from_numpy(values).permute(2, 0, 1)[None].to(self._device)
        with torch.inference_mode():
            maps = self._network.get_image_embeddings(pixels)
        self._shapes = [tuple(one.shape) for one in maps]
        return torch.cat([one.flatten() for one in maps]).to(torch.float16).cpu().numpy()

    def _maps(self, embedding: NDArray[np.float16]) -> list[Any]:
        import torch

        flat = torch.from_numpy(embedding).to(self._device, torch.float32)
        parts = flat.split([math.prod(shape) for shape in self._shapes])
        return [part.view(shape) for part, shape in zip(parts, self._shapes, strict=True)]


def _side(config: Any) -> int:
    """Side of the square that the network looks at."""
    side = config.prompt_encoder_config.image_size
    return int(side if isinstance(side, int) else side[0])
