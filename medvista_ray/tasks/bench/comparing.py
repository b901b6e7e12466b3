"""Values of boxes for the wide families, and whether two of them differ enough for a meter and little enough for an eye.

Invariant: truth comes from the native pixels of the recipe, by other code than the tools'. Called by the families only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.types import Box, MedImage

MIN_SHARE, MAX_SHARE = 0.04, 0.30
"""Difference of two means, as a share of the values' range."""
_MIN_ERRORS = 4.0
"""Least difference in standard errors: the meter calls less than 2 "equal"."""
_MIN_STEP = 2.0
"""Least difference in native units: the meter tells integers."""


def grey(image: MedImage) -> NDArray[np.float32]:
    """[H, W] native values; of colour the mean over channels."""
    pixels = image.pixels.astype(np.float32)
    if pixels.ndim == 2:
        return pixels
    red, green, blue = np.moveaxis(pixels, 2, 0)
    return (red + green + blue) / np.float32(3)  # ten times as fast as a mean over the last axis, to the last bit


def cut(values: NDArray[Any], box: Box) -> NDArray[Any]:
    """The pixels of a box (0..1000) in [H, W], edges rounded to whole pixels."""
    height, width = values.shape
    x0, x1 = round(box[0] * width / 1000), round(box[2] * width / 1000)
    y0, y1 = round(box[1] * height / 1000), round(box[3] * height / 1000)
    return values[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]


def value_span(values: NDArray[Any]) -> float:
    """Range of most of the values."""
    low, high = np.percentile(values[..., ::4, ::4], [0.5, 99.7])
    return max(float(high - low), 1.0)


def tell_apart(a: NDArray[Any], b: NDArray[Any], span: float, most: float = MAX_SHARE) -> bool:
    """Whether the means of two samples differ clearly for a meter, and by no more than `most` of the span."""
    gap = abs(float(a.mean()) - float(b.mean()))
    error = float(np.sqrt(a.var() / a.size + b.var() / b.size))
    return max(MIN_SHARE * span, _MIN_ERRORS * error, _MIN_STEP) <= gap <= most * span
