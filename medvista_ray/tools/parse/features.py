"""What a picture looks like, as one vector: brightness, colour, texture and edges, computed without a network.

Invariant: features come from the displayed pixels alone (no header, no file name). Called by `classify` and
`similar_cases`, which take a user's own model instead with backend "clip".
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from medvista_ray.registry import Registry
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage

Vector = NDArray[np.float32]
ENCODERS = Registry(
    "encoder",
    {
        "appearance": "medvista_ray.tools.parse.features:Appearance",
        "clip": "medvista_ray.tools.parse.vision_models:ClipModel",
    },
)
MAX_KEPT = 4096
"""Vectors that are remembered."""
SIDE = 128
"""Short side at which a picture is described, in pixels."""
_NATIVE_SIDE = 400
_TINY = 1e-3


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


class Appearance:
    """The default encoder. Thread-safe."""

    name = "appearance-1"

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        del choice, options
        self._vectors: ResultCache[Vector] = ResultCache(MAX_KEPT)

    def of(self, image: MedImage) -> Vector:
        """[D] features, remembered by content."""
        return self._vectors.get(image.key, lambda: self.fresh(image))

    def fresh(self, image: MedImage) -> Vector:
        """[D] features, computed and not remembered."""
        return describe(image.display())


def describe(display: NDArray[np.uint8]) -> Vector:
    """Features of [H, W, 3]."""
    small = _shrunk(display)
    grey = small.mean(axis=2)
    parts = (*_brightness(grey), *_colour(display, small), *_bands(grey), *_edges(grey), *_grain(display))
    return np.array(parts, np.float32)


def colour_share(display: NDArray[np.uint8]) -> float:
    """Share of pixels with a clear colour, 0..1."""
    step = max(1, min(display.shape[:2]) // 256)
    values = display[::step, ::step].astype(np.int16)
    return float((values.max(axis=2) - values.min(axis=2) > 40).mean())


def _shrunk(display: NDArray[np.uint8]) -> Vector:
    """Short side SIDE, 0..1."""
    from PIL import Image

    height, width = display.shape[:2]
    factor = SIDE / min(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    return np.asarray(Image.fromarray(display).resize(size, Image.Resampling.BILINEAR), np.float32) / 255.0


def _brightness(grey: Vector) -> list[float]:
    histogram = np.histogram(grey, bins=12, range=(0.0, 1.0))[0] / grey.size
    seen = grey[grey > 0.08] if (grey > 0.08).any() else grey.ravel()
    border = np.concatenate([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    shares = [(grey < 0.02).mean(), (grey > 0.98).mean(), seen.mean(), seen.std(), border.mean(), (border < 0.04).mean()]
    return [*np.sqrt(histogram), np.log1p(1e3 * grey.std()), *map(float, shares)]


def _colour(display: NDArray[np.uint8], small: Vector) -> list[float]:
    saturation = small.max(axis=2) - small.min(axis=2)
    share = colour_share(display)
    return [float(saturation.mean()), float((saturation > 0.1).mean()), share, float(np.log1p(1e3 * share))]


def _bands(grey: Vector) -> list[float]:
    """Strength and peakedness of five octaves of detail."""
    from scipy.ndimage import gaussian_filter

    found: list[float] = []
    rest = grey
    for sigma in (1, 2, 4, 8, 16):
        smooth = gaussian_filter(grey, sigma)
        band, rest = np.abs(rest - smooth), smooth
        spread = float(np.sqrt((band**2).mean())) + _TINY
        found += [float(np.log(spread)), float(np.log(np.median(band) + _TINY)), float(band.mean()) / spread]
    return found


def _edges(grey: Vector) -> list[float]:
    """Gradients, and local contrast relative to brightness (speckle)."""
    from scipy.ndimage import gaussian_filter, uniform_filter

    dy, dx = np.gradient(gaussian_filter(grey, 1))
    size = np.hypot(dy, dx)
    direction = np.log(np.abs(dy).mean() + _TINY) - np.log(np.abs(dx).mean() + _TINY)
    mean = uniform_filter(grey, 5)
    spread = np.sqrt(np.maximum(uniform_filter(grey * grey, 5) - mean**2, 0.0))
    lit = mean > 0.1
    speckle = [np.median(spread[lit] / mean[lit]), np.median(spread[lit])] if lit.any() else [0.0, 0.0]
    return [*map(float, (np.log(size.mean() + _TINY), np.log(np.percentile(size, 99) + _TINY), direction, *speckle))]


def _grain(display: NDArray[np.uint8]) -> list[float]:
    """Noise at native resolution: what a median filter takes away, and how alike neighbours are."""
    from scipy.ndimage import median_filter

    height, width = display.shape[:2]
    top, left = max(0, (height - _NATIVE_SIDE) // 2), max(0, (width - _NATIVE_SIDE) // 2)
    native = display[top : top + _NATIVE_SIDE, left : left + _NATIVE_SIDE, 1].astype(np.float32)
    middle = (native > 20) & (native < 235)
    noise = float(np.abs(native - median_filter(native, 3))[middle].mean()) if middle.any() else 0.0
    a, b = native[:, 1:].ravel(), native[:, :-1].ravel()
    alike = float(np.corrcoef(a, b)[0, 1]) if a.size > 1 and a.std() > 0 and b.std() > 0 else 1.0
    return [float(np.log1p(noise)), float(np.log(1.001 - alike))]
