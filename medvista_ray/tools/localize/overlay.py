"""Draw what was found on a picture, for the eye: outlines of masks, boxes. Called by the tools of this family."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from medvista_ray.tools.refine.resampling import MAX_LONG_SIDE
from medvista_ray.types import Box, MedImage

_COLOUR = (255, 64, 0)


def overlay(image: MedImage, boxes: Sequence[Box], masks: Sequence[NDArray[np.bool_]] = ()) -> MedImage:
    """`image` as displayed, long side at most MAX_LONG_SIDE, with boxes and the edges of masks in orange."""
    from scipy.ndimage import binary_erosion

    display = image.display().copy()
    for mask in masks:
        display[mask & ~binary_erosion(mask)] = _COLOUR
    picture = Image.fromarray(display)
    picture.thumbnail((MAX_LONG_SIDE, MAX_LONG_SIDE))
    pen = ImageDraw.Draw(picture)
    for x0, y0, x1, y1 in boxes:
        corners = x0 * picture.width // 1000, y0 * picture.height // 1000
        pen.rectangle([*corners, x1 * picture.width // 1000 - 1, y1 * picture.height // 1000 - 1], outline=_COLOUR)
    return MedImage(np.asarray(picture), image.modality, source=image.source)
