"""What stands out in one CT slice by density alone: air, fat, bone, metal, and rounded soft tissue in the lung.

Densities (Hounsfield units) are textbook ranges; no disease is named. Invariant: pure functions of pixels and spacing.
Called by `detect_findings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.types import MedImage

if TYPE_CHECKING:
    from medvista_ray.tools.parse.detect_findings import Finding

_BODY_HU = -300.0
_RANGES = {"aerated lung": (-950.0, -500.0), "fat": (-150.0, -30.0), "bone or contrast": (200.0, 2000.0)}
_METAL_HU = 2500.0
_SOFT_HU = (-200.0, 200.0)
_MIN_NODULE_MM, _MIN_ROUNDNESS = 4.0, 0.55
_MIN_PERCENT = 1.0
_ASSUMED_MM = 0.8
"""Pixel size where the picture has none: a chest field of 400 mm in 512 pixels."""
Mask = NDArray[np.bool_]


def detect(image: MedImage) -> list[Finding]:
    """Tissue shares of the body in percent, metal, and each rounded soft-tissue island in the lung."""
    from medvista_ray.tools.parse.detect_findings import Finding

    values = image.pixels.astype(np.float32)
    body = body_mask(values)
    if not body.any():
        return []
    found: list[Finding] = []
    for name, (low, high) in _RANGES.items():
        share = 100.0 * float(((values >= low) & (values <= high) & body).sum() / body.sum())
        if share >= _MIN_PERCENT:
            found.append(Finding(name, share, "% of the body"))
    if (values > _METAL_HU).any():
        box = window_to_box(mask_window(values > _METAL_HU), image.size)
        found.append(Finding("metal", float((values > _METAL_HU).sum()), "pixels", box))
    return [*_nodules(image, values, body), *found]


def body_mask(values: NDArray[np.float32]) -> Mask:
    """The largest thing denser than air, holes filled (the table falls away)."""
    from scipy import ndimage

    labels, count = ndimage.label(ndimage.binary_opening(values > _BODY_HU, iterations=2))
    if not count:
        return np.zeros(values.shape, bool)
    largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    return np.asarray(ndimage.binary_fill_holes(labels == largest))


def _nodules(image: MedImage, values: NDArray[np.float32], body: Mask) -> list[Finding]:
    """Soft tissue that the lung surrounds, or that bulges into it: lung closed by a disc, less the lung."""
    from skimage.measure import label, regionprops
    from skimage.morphology import closing, disk, opening

    from medvista_ray.tools.parse.detect_findings import Finding

    step = sum(image.spacing_mm) / 2 if image.spacing_mm else _ASSUMED_MM
    lung = (values < -500.0) & body
    if lung.sum() * step**2 < 2000.0:  # 20 cm2: not a slice through the lung
        return []
    soft = closing(lung, disk(round(12.0 / step))) & (values > _SOFT_HU[0]) & (values < _SOFT_HU[1])
    labels = label(opening(soft, disk(max(1, round(1.5 / step)))))
    found: list[Finding] = []
    for part in sorted(regionprops(labels), key=lambda part: -part.area):
        long_mm, short_mm = part.axis_major_length * step, part.axis_minor_length * step
        if short_mm >= _MIN_NODULE_MM and short_mm / long_mm >= _MIN_ROUNDNESS and part.solidity > 0.8:
            box = window_to_box(mask_window(labels == part.label), image.size)
            found.append(Finding("rounded soft tissue in the lung", long_mm, "mm", box))
    return found
