"""Which slice of a scan, and how its values are shown: what `zoom_in` and `enhance` have in common.

Window presets are the usual centre and width in Hounsfield units (lung -600/1500, mediastinum 40/400, bone 400/1800,
brain 40/80), so they are refused on anything else.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Literal

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.refine.resampling import MAX_LONG_SIDE, resample, rescaled
from medvista_ray.types import MedImage, Plane, VolumeImage

Preset = Literal["lung", "mediastinum", "bone", "brain"]
PRESETS: Mapping[Preset, tuple[float, float]] = {
    "lung": (-1350.0, 150.0),
    "mediastinum": (-160.0, 240.0),
    "bone": (-500.0, 1300.0),
    "brain": (0.0, 80.0),
}
"""Hounsfield units shown as black and white."""


def select(image: MedImage, index: int, slice_index: int | None, plane: Plane = "axial") -> MedImage:
    """Slice `slice_index` of picture `index` of the episode; None leaves what is shown (another plane: the middle).

    Raises ToolArgumentError if the picture has no such slice.
    """
    if slice_index is None and plane == "axial":
        return image
    if not isinstance(image, VolumeImage):
        raise ToolArgumentError(f"image {index} is a single picture: it has no slice_index and no plane")
    if plane != "axial" and image.slice_mm is None:
        raise ToolArgumentError(f"image {index} is a stack of frames: it has no {plane} plane")
    number = image.num_slices(plane)
    chosen = number // 2 if slice_index is None else slice_index
    if chosen >= number:
        raise ToolArgumentError(f"image {index} has {plane} slices 0..{number - 1}, not {chosen}")
    return square(image.at(chosen, plane))


def square(image: MedImage) -> MedImage:
    """`image` with square pixels, as an eye expects; thick slices are stretched, spacing follows."""
    if image.spacing_mm is None:
        return image
    step = min(image.spacing_mm)
    stretched = (round(side * mm / step) for side, mm in zip(image.size, image.spacing_mm, strict=True))
    height, width = (min(max(side, 1), 4 * MAX_LONG_SIDE) for side in stretched)
    return rescaled(image, resample(image.pixels, height, width))


def windowed(image: MedImage, preset: Preset | None) -> MedImage:
    """`image` shown in that window. Raises ToolArgumentError if its values are not Hounsfield units."""
    if preset is None:
        return image
    if image.unit != "HU":
        raise ToolArgumentError(f"window {preset!r} is in HU, the picture in {image.unit}: use params low and high")
    return replace(image, window=PRESETS[preset])
