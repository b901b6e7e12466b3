"""A user's own picture models through transformers: CLIP (zero-shot words, features) and multi-label classifiers.

Invariant: weights come from the user's folder only, nothing is downloaded. The stronger backends of `classify`,
`similar_cases` and `detect_findings`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.assets.store import sha256_of
from medvista_ray.errors import AssetError
from medvista_ray.tools.backends import load_model, loading, weights_folder
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage

MAX_KEPT = 4096
PROMPT = "this is a photo of {}"
"""BiomedCLIP's own template (Zhang et al., 2023)."""


class ClipModel:
    """A CLIP or SigLIP folder in transformers' format. Thread-safe: weights are only read."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the folder holds no such model."""
        del options
        self._model, self._device = load_model(_auto("AutoModel"), choice), choice.device
        if not hasattr(self._model, "get_image_features"):
            kind = type(self._model).__name__
            raise AssetError(f"backend {choice.name!r}: {choice.weights} holds {kind}: it compares no pictures with words")
        self._processor = _processor(_auto("AutoProcessor"), choice)
        self.name = f"clip-{_fingerprint(choice)}"
        self._vectors: ResultCache[NDArray[np.float32]] = ResultCache(MAX_KEPT)

    def rank(self, image: MedImage, labels: Sequence[str]) -> NDArray[np.float32]:
        """Zero-shot shares of `labels`, sum 1."""
        import torch

        inputs = self._processor(text=[PROMPT.format(label) for label in labels], padding=True, return_tensors="pt")
        with torch.inference_mode():
            words = _features(self._model.get_text_features(**inputs.to(self._device)))
            picture = torch.from_numpy(self.of(image)).to(self._device)
            scores = self._model.logit_scale.exp() * torch.nn.functional.normalize(words, dim=-1) @ _unit(picture)
            return torch.softmax(scores.float(), dim=0).cpu().numpy()

    def of(self, image: MedImage) -> NDArray[np.float32]:
        """[D] features, remembered by content."""
        return self._vectors.get(image.key, lambda: self.fresh(image))

    def fresh(self, image: MedImage) -> NDArray[np.float32]:
        """[D] features."""
        import torch

        inputs = self._processor(images=_picture(image), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            return _features(self._model.get_image_features(**inputs))[0].float().cpu().numpy()


class FindingsModel:
    """A multi-label image classifier folder in transformers' format (labels in its config). Thread-safe."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the folder holds no such model."""
        del options
        self._model, self._device = load_model(_auto("AutoModelForImageClassification"), choice), choice.device
        self._processor = _processor(_auto("AutoImageProcessor"), choice)

    def probabilities(self, image: MedImage) -> dict[str, float]:
        """Probability of each finding, alone (sigmoid)."""
        import torch

        inputs = self._processor(images=_picture(image), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            shares = torch.sigmoid(self._model(**inputs).logits[0].float()).tolist()
        return {str(self._model.config.id2label[index]): share for index, share in enumerate(shares)}


def _auto(name: str) -> Any:
    from medvista_ray.torchvision_shim import ensure

    ensure()
    import transformers

    return getattr(transformers, name)


def _fingerprint(choice: BackendChoice) -> str:
    """Of the weights themselves, so that a bank of cases fits the model that made it."""
    folder = weights_folder(choice)
    files = sorted(path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".bin"))
    return hashlib.sha256("".join(sha256_of(path) for path in files).encode()).hexdigest()[:12]


def _processor(kind: Any, choice: BackendChoice) -> Any:
    """The folder's own preparation of pictures and words. Raises AssetError."""
    with loading(choice):
        return kind.from_pretrained(weights_folder(choice), local_files_only=True)


def _picture(image: MedImage) -> Any:
    from PIL import Image

    return Image.fromarray(image.display())


def _features(output: Any) -> Any:
    """[N, D]: transformers gives a tensor or, from 5.0, an output that holds it."""
    return output if hasattr(output, "shape") else output.pooler_output


def _unit(vector: Any) -> Any:
    return vector / vector.norm().clamp_min(1e-9)
