"""What a picture is once it is open: a volume, or a single plate; and the row that describes its subject.

Invariant: a picture is in radiological display orientation (rows towards the feet or the back, columns towards the
patient's left, so that the patient's right is on the image's left; slices towards the head), and its values are native
(HU, signal).
Called by `gallery` and `volumes`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True)
class Volume:
    """A scan. Arrays are read-only and memory-mapped: take the slice that you need."""

    values: NDArray[Any]
    """[slices, rows, cols] int16."""
    spacing_mm: tuple[float, float, float]
    """Millimetres per voxel: slice, row, column."""
    unit: str
    """"HU" or "signal"."""
    modality: str
    labels: NDArray[Any] | None = None
    """[slices, rows, cols] uint8, 0 is background."""
    label_names: Mapping[int, str] = field(default_factory=dict[int, str])
    """Name of each label value."""


@dataclass(frozen=True)
class Plate:
    """A single picture."""

    pixels: NDArray[Any]
    """[rows, cols] int16 or uint16 native values, or [rows, cols, 3] uint8."""
    spacing_mm: tuple[float, float] | None
    """Millimetres per pixel: row, column. In ultrasound it holds inside the scan region."""
    unit: str
    """"HU", "signal", "counts" or "intensity"."""
    modality: str
    labels: NDArray[Any] | None = None
    """[rows, cols] int32: instance number, 0 is background."""
    classes: NDArray[Any] | None = None
    """[rows, cols] uint8: class of the instance at this pixel, 0 is background."""
    class_names: Mapping[int, str] = field(default_factory=dict[int, str])
    """Name of each class value."""
    region: tuple[int, int, int, int] | None = None
    """Row, column, height, width of the part that shows tissue, where a device draws a screen around it."""


class Kind(StrEnum):
    """Which function opens a subject."""

    VOLUME = "volume"
    PLATE = "plate"


@dataclass(frozen=True)
class SubjectInfo:
    """One row of the table of subjects."""

    id: str
    modality: str
    asset: str
    kind: Kind
    about: str
    has_labels: bool = False
