"""Cell nuclei by classical means: stain density or brightness, threshold, distance watershed.

Invariant: pure functions of the displayed pixels. An honest, imperfect counter: touching nuclei may count as one and
textured ones as several. Stains by colour deconvolution (Ruifrok and Johnston, 2001). Called by `detect_findings`.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Stain = Literal["stained", "fluorescent"]
_MIN_AREA_PX = 25
_MIN_SATURATION = 0.06
_MIN_NUM, _MIN_SOLIDITY = 12, 0.85
"""Grey blobs count as a fluorescence picture from so many on, if so convex."""
_MAX_SHARE = 0.03
"""A nucleus is a small part of a field of view."""
_MAX_SIDE = 2048


def stain(display: NDArray[np.uint8]) -> Stain | None:
    """How nuclei show in [H, W, 3], or None if this does not look like microscopy."""
    values = display.astype(np.float32) / 255.0
    saturation = values.max(axis=2) - values.min(axis=2)
    if float((saturation > _MIN_SATURATION).mean()) > 0.5:
        is_tissue = float(values.mean()) > 0.35 and float(values[..., 1].mean()) <= float(values[..., (0, 2)].mean())
        return "stained" if is_tissue and float(values[..., 2].mean()) > 0.35 else None
    if float((saturation > _MIN_SATURATION).mean()) > 0.02:
        return None  # a grey picture with coloured marks: a screen
    return "fluorescent" if _looks_fluorescent(values.mean(axis=2)) else None


def count(display: NDArray[np.uint8], kind: Stain) -> list[tuple[int, int, int, int]]:
    """Pixel boxes (y0, x0, y1, x1) of nuclei."""
    from skimage.measure import regionprops

    # A stain is textured inside a nucleus: it needs a coarser scale (both chosen on train slides).
    return [tuple(part.bbox) for part in regionprops(labels(_density(display, kind), 2.0 if kind == "stained" else 1.0))]


def labels(density: NDArray[np.float32], sigma: float = 1.0) -> NDArray[np.int32]:
    """[H, W] instance numbers of bright blobs about `sigma` pixels apart in detail; 0 is background."""
    from scipy import ndimage
    from skimage.feature import peak_local_max
    from skimage.filters import gaussian, threshold_otsu
    from skimage.morphology import remove_small_holes, remove_small_objects
    from skimage.segmentation import watershed

    smooth = gaussian(density, sigma)
    mask = smooth > threshold_otsu(smooth)
    mask = remove_small_holes(remove_small_objects(mask, max_size=_MIN_AREA_PX - 1), max_size=64)
    distance = gaussian(ndimage.distance_transform_edt(mask), sigma)
    parts: Any = ndimage.label(mask)
    peaks = peak_local_max(distance, min_distance=5, labels=parts[0], exclude_border=False)
    seeds = np.zeros(mask.shape, np.int32)
    seeds[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
    return np.asarray(watershed(-distance, seeds, mask=mask), np.int32)


def _density(display: NDArray[np.uint8], kind: Stain) -> NDArray[np.float32]:
    if kind == "fluorescent":
        return display.mean(axis=2).astype(np.float32) / 255.0
    from skimage.color import rgb2hed

    return np.clip(rgb2hed(display)[..., 0], 0.0, None).astype(np.float32)


def _looks_fluorescent(grey: NDArray[np.float32]) -> bool:
    """Many convex bright blobs of like size on a dark ground."""
    from skimage.measure import regionprops

    if float(np.median(grey)) > 0.3 or max(grey.shape) > _MAX_SIDE or float(grey.std()) < 1e-3:
        return False
    parts = [part for part in regionprops(labels(grey)) if part.area >= _MIN_AREA_PX]
    if len(parts) < _MIN_NUM:
        return False
    areas = np.array([part.area for part in parts])
    is_alike = float(areas.std() / areas.mean()) < 0.9 and float(areas.max()) < _MAX_SHARE * grey.size
    return is_alike and float(np.median([part.solidity for part in parts])) > _MIN_SOLIDITY
