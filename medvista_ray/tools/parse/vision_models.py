"""A user's own picture models through transformers: CLIP (zero-shot words, features) and multi-label classifiers.

Invariant: weights come from the user's folder only, nothing is downloaded. The stronger backends of `classify`,
`similar_cases` and `detect_findings`.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import AssetError
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage

MAX_KEPT = 4096
PROMPT = "this is a photo of {}"
"""BiomedCLIP's own template (Zhang et al., 2023)."""


class ClipModel:
    """A CLIP or SigLIP folder in transformers' format. Thread-safe: weights are only read."""

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        """Raises AssetError if the folder holds no such model."""
        self._model, self._processor, self._device = _load(folder, num_threads, "AutoModel")
        if not hasattr(self._model, "get_image_features"):
            raise AssetError(f"{folder} holds {type(self._model).__name__}, which does not compare pictures with words")
        self.name = f"clip-{folder.name}"
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

    def __init__(self, folder: Path, num_threads: int | None = None) -> None:
        """Raises AssetError if the folder holds no such model."""
        self._model, self._processor, self._device = _load(folder, num_threads, "AutoModelForImageClassification")

    def probabilities(self, image: MedImage) -> dict[str, float]:
        """Probability of each finding, alone (sigmoid)."""
        import torch

        inputs = self._processor(images=_picture(image), return_tensors="pt").to(self._device)
        with torch.inference_mode():
            shares = torch.sigmoid(self._model(**inputs).logits[0].float()).tolist()
        return {str(self._model.config.id2label[index]): share for index, share in enumerate(shares)}


def _load(folder: Path, num_threads: int | None, kind: str) -> tuple[Any, Any, Any]:
    """Model, processor and device."""
    import torch

    from medvista_ray.torchvision_shim import install

    install()
    import transformers

    if num_threads is not None:
        torch.set_num_threads(num_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    processor_kind = "AutoProcessor" if kind == "AutoModel" else "AutoImageProcessor"
    with _loading(folder):
        model: Any = getattr(transformers, kind).from_pretrained(folder, local_files_only=True)
        processor: Any = getattr(transformers, processor_kind).from_pretrained(folder, local_files_only=True)
    return model.to(device).eval().requires_grad_(False), processor, device


@contextmanager
def _loading(folder: Path) -> Generator[None]:
    """What transformers raises for a folder that does not fit becomes an AssetError."""
    if not folder.is_dir():
        raise AssetError(f"weights {str(folder)!r} are not a folder")
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise AssetError(f"weights in {folder} do not load: {error}") from error


def _picture(image: MedImage) -> Any:
    from PIL import Image

    return Image.fromarray(image.display())


def _features(output: Any) -> Any:
    """[N, D]: transformers gives a tensor or, from 5.0, an output that holds it."""
    return output if hasattr(output, "shape") else output.pooler_output


def _unit(vector: Any) -> Any:
    return vector / vector.norm().clamp_min(1e-9)
