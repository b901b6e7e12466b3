"""How masks travel between a client and a tool replica: one bit per pixel instead of one byte.

A 512 x 512 mask is then 32 kB, which Ray sends inline with the message and not through its object store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medvista_ray.types import Mask, ToolOutcome


@dataclass(frozen=True)
class PackedMask:
    """A mask, packed."""

    image_index: int
    shape: tuple[int, int]
    bits: NDArray[np.uint8]
    """[ceil(H * W / 8)]"""


def pack_mask(mask: Mask) -> PackedMask:
    """Pack one mask."""
    height, width = mask.pixels.shape
    return PackedMask(mask.image_index, (height, width), np.packbits(mask.pixels, axis=None))


def unpack_mask(packed: PackedMask) -> Mask:
    """The very mask that was packed."""
    height, width = packed.shape
    flat = np.unpackbits(packed.bits, count=height * width)
    return Mask(packed.image_index, flat.astype(bool).reshape(packed.shape))


def pack_masks(outcome: ToolOutcome) -> tuple[ToolOutcome, tuple[PackedMask, ...]]:
    """The outcome without its masks, and these packed."""
    if outcome.result is None or not outcome.result.masks:
        return outcome, ()
    packed = tuple(pack_mask(mask) for mask in outcome.result.masks)
    return replace(outcome, result=replace(outcome.result, masks=())), packed


def unpack_masks(outcome: ToolOutcome, packed: tuple[PackedMask, ...]) -> ToolOutcome:
    """Undo pack_masks."""
    if outcome.result is None or not packed:
        return outcome
    masks = tuple(unpack_mask(mask) for mask in packed)
    return replace(outcome, result=replace(outcome.result, masks=masks))
