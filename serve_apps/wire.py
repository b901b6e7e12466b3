"""How a call's masks and its outcome travel between a client and a tool replica.

Masks take one bit per pixel instead of one byte: a 512 x 512 mask is then 32 kB. Invariant: what exceeds
`MAX_MESSAGE_BYTES` is not sent as one message but goes through Ray's object store.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from medvista_ray.types import Mask, ToolOutcome
from serve_apps.pictures import num_bytes

MAX_MESSAGE_BYTES = 3 << 20
"""Pictures and masks of one message; gRPC, and Serve with it, refuses to receive more than 4 MiB in all."""

Packed = tuple[ToolOutcome, "tuple[PackedMask, ...]"]
"""An outcome without its masks, and these packed."""


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


def pack_masks(outcome: ToolOutcome) -> Packed:
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


def fits_message(packed: Packed) -> bool:
    """Whether one message may carry that."""
    outcome, masks = packed
    images = outcome.result.images if outcome.result is not None else ()
    return sum(map(num_bytes, images)) + sum(mask.bits.nbytes for mask in masks) <= MAX_MESSAGE_BYTES
