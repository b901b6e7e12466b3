"""What a picture looks like, as one vector: the pooled embedding of LiteMedSAM's encoder, or of a user's own CLIP model.

Invariant: features come from the displayed pixels alone (no header, no file name). The encoder's embedding is the one
that `segment_medical` keeps on disk, so a picture is encoded once for both. Called by `classify`, `detect_findings` and
`similar_cases`.

LiteMedSAM's encoder was trained on ten kinds of medical pictures (Ma et al., Nature Communications 2024); mean,
standard deviation and maximum over the 64 x 64 positions of its 256 channels make 768 numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from medvista_ray.registry import Registry
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage

if TYPE_CHECKING:
    from medvista_ray.tools.localize.embedding_cache import Embedding

Vector = NDArray[np.float32]
ENCODERS = Registry(
    "encoder",
    {
        "litemedsam": "medvista_ray.tools.parse.features:PictureFeatures",
        "clip": "medvista_ray.tools.parse.vision_models:ClipModel",
    },
)
MAX_KEPT = 4096
"""Vectors that are remembered (3 kB each)."""
_MAX_EMBEDDINGS_MIB = 32
"""Whole embeddings are only passed through here: the vectors are what is kept."""
_MIB = 1 << 20


class Encoder(Protocol):
    """Pictures to vectors."""

    name: str
    """Weights and arithmetic: vectors of encoders of one name compare."""

    def of(self, image: MedImage) -> Vector:
        """[D] features, remembered by content."""
        ...

    def fresh(self, image: MedImage) -> Vector:
        """[D] features, computed and not remembered."""
        ...


class PictureFeatures:
    """The loaded encoder. Thread-safe."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Load the package's weights. Raises AssetError if they are absent."""
        del choice
        import torch

        from medvista_ray.assets import asset_dir, cache_root
        from medvista_ray.tools.localize.embedding_cache import EmbeddingCache
        from medvista_ray.tools.localize.litemedsam import LiteMedSam

        if options.num_threads is not None:
            torch.set_num_threads(options.num_threads)
        folder = asset_dir("medsam-lite")
        self.network = LiteMedSam(folder, options.precision)
        self.name = f"{folder.name}-{self.network.precision}"
        kept = cache_root() / "embeddings" / self.name
        self._embeddings = EmbeddingCache(_MAX_EMBEDDINGS_MIB * _MIB, kept, options.disk_cache_mib * _MIB)
        self.vectors: ResultCache[Vector] = ResultCache(MAX_KEPT)

    def of(self, image: MedImage) -> Vector:
        """[768] features, remembered by content."""
        return self.vectors.get(image.key, lambda: pooled(self._embedding(image)))

    def fresh(self, image: MedImage) -> Vector:
        """[768] features, computed and not remembered: for building a bank."""
        return pooled(self.network.encode(image.display()))

    def _embedding(self, image: MedImage) -> Embedding:
        return self._embeddings.get(image.key, lambda: self.network.encode(image.display()))


def pooled(embedding: Embedding) -> Vector:
    """[C, E, E] -> [3 C]."""
    values = embedding.astype(np.float32).reshape(len(embedding), -1)
    return np.concatenate([values.mean(axis=1), values.std(axis=1), values.max(axis=1)])
