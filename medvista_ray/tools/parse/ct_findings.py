"""What stands out in one CT slice by density alone: aerated lung, fat, bone or contrast, metal.

Densities (Hounsfield units) are textbook ranges; no disease is named, and no nodule is looked for:
classical nodule finding drowned in vessels on the train scans. Invariant: pure functions of the pixels.
Called by `detect_findings`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.types import MedImage

if TYPE_CHECKING:
    from medvista_ray.tools.parse.detect_findings import Finding

_BODY_HU = -300.0
_RANGES = {"aerated lung": (-950.0, -500.0), "fat": (-150.0, -30.0), "bone or contrast": (200.0, 2000.0)}
_METAL_HU = 2500.0
_MIN_PERCENT = 1.0
Mask = NDArray[np.bool_]


def detect(image: MedImage) -> list[Finding]:
    """Tissue shares of the body in percent, and the place of metal."""
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
    metal = (values > _METAL_HU) & body
    if metal.any():
        found.append(Finding("metal", float(metal.sum()), "pixels", window_to_box(mask_window(metal), image.size)))
    return found


def body_mask(values: NDArray[np.float32]) -> Mask:
    """The largest thing denser than air, holes filled (the table falls away)."""
    from scipy import ndimage

    labelled: Any = ndimage.label(ndimage.binary_opening(values > _BODY_HU, iterations=2))
    labels, count = labelled
    if not count:
        return np.zeros(values.shape, bool)
    largest = int(np.bincount(labels.ravel())[1:].argmax()) + 1
    return np.asarray(ndimage.binary_fill_holes(labels == largest))
