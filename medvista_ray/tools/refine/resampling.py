"""Change a picture's grid without changing what it measures.

Invariant: native values keep their type and never leave the range of what they came from, and the pixel spacing follows
the factor exactly. Called by the tools of this family.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.tools.geometry import Window
from medvista_ray.types import MedImage

MAX_LONG_SIDE = 1024
"""Bound of what travels, in pixels."""


def crop(image: MedImage, window: Window) -> MedImage:
    """The part of `image` inside `window`, in its own resolution, with the look of the whole."""
    return plain(image, image.pixels[window.y0 : window.y1, window.x0 : window.x1])


def plain(image: MedImage, pixels: NDArray[Any]) -> MedImage:
    """`pixels` with the description of `image` (a scan becomes a single picture)."""
    window = image.window or value_range(image.pixels)
    return MedImage(pixels, image.modality, image.spacing_mm, image.unit, window, image.source)


def rescaled(image: MedImage, pixels: NDArray[Any]) -> MedImage:
    """`image` on the grid of `pixels`, which show the same field of view."""
    factors = image.size[0] / pixels.shape[0], image.size[1] / pixels.shape[1]
    spacing = image.spacing_mm and (image.spacing_mm[0] * factors[0], image.spacing_mm[1] * factors[1])
    return replace(image, pixels=pixels, spacing_mm=spacing)


def bounded(image: MedImage) -> MedImage:
    """`image` with a long side of at most MAX_LONG_SIDE."""
    factor = MAX_LONG_SIDE / max(image.size)
    if factor >= 1.0:
        return image
    return rescaled(image, resample(image.pixels, max(1, round(image.size[0] * factor)), max(1, round(image.size[1] * factor))))


def resample(pixels: NDArray[Any], height: int, width: int, method: Image.Resampling = Image.Resampling.BILINEAR) -> NDArray[Any]:
    """On a grid of `height` x `width` (antialiased when it shrinks); keeps the dtype and the range."""
    if pixels.shape[:2] == (height, width):
        return np.ascontiguousarray(pixels)
    if pixels.ndim == 3:
        colour = Image.fromarray(np.ascontiguousarray(pixels.astype(np.uint8)))
        return np.asarray(colour.resize((width, height), method))
    grey = Image.fromarray(np.ascontiguousarray(finite(pixels).astype(np.float32)))
    return restored(np.asarray(grey.resize((width, height), method)), pixels)


def restored(values: NDArray[Any], native: NDArray[Any]) -> NDArray[Any]:
    """`values` (float) as the type of `native`, rounded if that is an integer, within its range."""
    known = finite(native)
    values = np.clip(values, known.min(), known.max())
    return (np.rint(values) if np.issubdtype(native.dtype, np.integer) else values).astype(native.dtype)


def value_range(pixels: NDArray[Any]) -> tuple[float, float] | None:
    """Window of a grey picture that has none: its whole range, so that a part keeps the look of the whole."""
    known = finite(pixels)
    return None if pixels.ndim == 3 else (float(known.min()), float(known.max()))


def finite(pixels: NDArray[Any]) -> NDArray[Any]:
    """`pixels` with 0 for what is no number, as `MedImage.display` shows it: one such pixel must not spread over a picture."""
    if pixels.dtype.kind != "f" or np.isfinite(pixels).all():
        return pixels
    return np.nan_to_num(pixels, posinf=0.0, neginf=0.0)
