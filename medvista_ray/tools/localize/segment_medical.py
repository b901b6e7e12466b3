"""`segment_medical`: the structure inside a box, as a mask (LiteMedSAM).

Invariant: the slow part (the image encoder) runs once per picture content, however many calls and episodes ask; the
mask has the picture's resolution. The network sees what the window shows, as the policy does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import ToolArgumentError
from medvista_ray.recent import Recent
from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.types import Mask, MedImage, ToolResult

if TYPE_CHECKING:
    from medvista_ray.tools.localize.embedding_cache import EmbeddingCache
    from medvista_ray.tools.localize.litemedsam import LiteMedSam

_MIB = 1 << 20
MAX_MASKS = 256
"""Masks that are remembered, by picture and box: 64 MiB at 512 x 512."""


class SegmentMedicalArgs(ToolArgs):
    """Arguments of segment_medical."""

    image_index: Index = 0
    bbox: BoxArg


class SegmentMedical(Tool):
    """Box to mask."""

    name: ClassVar[str] = "segment_medical"
    family: ClassVar[Family] = "localize"
    description: ClassVar[str] = "outline the structure in a box."
    Args = SegmentMedicalArgs
    num_parallel: ClassVar[int] = 2

    network: LiteMedSam
    cache: EmbeddingCache
    masks: Recent[tuple[NDArray[np.bool_], float]]

    def setup(self) -> None:
        """Load the weights. `num_threads`, if given, holds for the whole process."""
        import torch

        from medvista_ray.assets import asset_dir, cache_root
        from medvista_ray.tools.localize.embedding_cache import EmbeddingCache
        from medvista_ray.tools.localize.litemedsam import LiteMedSam

        if self.options.num_threads is not None:
            torch.set_num_threads(self.options.num_threads)
        folder = asset_dir("medsam-lite")
        self.network = LiteMedSam(folder, self.options.precision)
        # One folder per weights and precision: an embedding fits no other.
        kept = cache_root() / "embeddings" / f"{folder.name}-{self.network.precision}"
        options = self.options
        self.cache = EmbeddingCache(options.embedding_cache_mib * _MIB, kept, options.disk_cache_mib * _MIB)
        self.masks = Recent(MAX_MASKS)
        self._probe_image = _disc()
        self._probe_embedding = self.network.encode(self._probe_image.display())

    def run(self, args: SegmentMedicalArgs, context: ToolContext) -> ToolResult:
        """The mask as the episode's next one. Raises ToolArgumentError if the network finds nothing in the box."""
        image = context.image(args.image_index)
        embedding = self.cache.get(image.key, lambda: self.network.encode(image.display()))
        # The episodes of a group often name the very same box.
        key = (image.key, args.bbox)
        pixels, score = self.masks.get(key, lambda: self.network.decode(embedding, args.bbox, image.size))
        if not pixels.any():
            raise ToolArgumentError(f"no structure found in box {list(args.bbox)} of image {args.image_index}")
        box = window_to_box(mask_window(pixels), image.size)
        return ToolResult(
            text=f"mask {context.num_masks}: box {list(box)}.",
            masks=(Mask(args.image_index, pixels),),
            data={"bbox": list(box), "score": score, "area_px": int(pixels.sum()), "image_index": args.image_index},
        )

    def probe(self) -> None:
        """Decode a disc from an embedding that was made at set-up (no encoder run)."""
        pixels, _ = self.network.decode(self._probe_embedding, (200, 200, 800, 800), self._probe_image.size)
        if not pixels[32, 32]:
            raise RuntimeError("segment_medical does not find a bright disc")


def _disc() -> MedImage:
    ys, xs = np.mgrid[:64, :64]
    disc = ((ys - 32) ** 2 + (xs - 32) ** 2 < 16**2).astype(np.float32)
    return MedImage(pixels=disc, modality="probe")
