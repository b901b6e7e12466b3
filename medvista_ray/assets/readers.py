"""Parse NIfTI, NRRD, DICOM and picture files into plain arrays, in display orientation where the file tells it.

Invariant: whatever a broken file makes its library raise becomes an ImageError that names the file.
Called by `gallery`.
"""

from __future__ import annotations

import csv
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import ImageError

_MIN_HU, _MAX_HU = -1024, 3071
_NRRD_SPACES = {
    "left-posterior-superior": (1.0, 1.0, 1.0),
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "lps": (1.0, 1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
"""Towards left, posterior and superior from the axes of a space (NRRD format, "space" field)."""
_MM_PER_CM = 10.0
_CM_UNITS = 3
"""PhysicalUnitsXDirection of centimetres (DICOM PS3.3 C.8.5.5.1.15)."""
_TISSUE = 1
"""RegionDataType of 2-D tissue (same section)."""


@dataclass(frozen=True)
class Grid:
    """A volume in display orientation."""

    values: NDArray[Any]
    """[slices, rows, cols]"""
    spacing_mm: tuple[float, float, float]
    """slice, row, column"""


@dataclass(frozen=True)
class Picture:
    """A frame in display orientation."""

    pixels: NDArray[Any]
    spacing_mm: tuple[float, float] | None
    region: tuple[int, int, int, int] | None
    """row, column, height, width"""


@contextmanager
def reading(path: Path) -> Generator[None]:
    """The fault boundary of foreign parsers."""
    try:
        yield
    except ImageError:
        raise
    except Exception as error:  # nibabel, nrrd, pydicom, Pillow and zlib share no base class for "this file is broken"
        raise ImageError(f"{path} cannot be read: {type(error).__name__}: {error}") from error


def hounsfield(values: NDArray[Any]) -> NDArray[np.int16]:
    """Rounded HU; what scanners write outside their field of view (below air) becomes air."""
    return np.clip(np.rint(values), _MIN_HU, _MAX_HU).astype(np.int16)


def cast(values: NDArray[Any], dtype: str, path: Path) -> NDArray[Any]:
    """Round to an integer type. Raises ImageError if a value does not fit."""
    limits = np.iinfo(dtype)
    if values.min() < limits.min or values.max() > limits.max:
        raise ImageError(f"{path}: values {values.min()}..{values.max()} do not fit {dtype}")
    rounded = np.rint(values) if values.dtype.kind == "f" else values
    return rounded.astype(dtype)


def read_nifti(path: Path) -> Grid:
    """A NIfTI volume, oriented by its affine."""
    import nibabel

    with reading(path):
        image: Any = nibabel.load(path)  # pyright: ignore[reportPrivateImportUsage]
        values = np.asanyarray(image.dataobj, dtype=np.float32)
        to_lps = np.diag([-1.0, -1.0, 1.0])  # NIfTI's axes point right, anterior, superior
        return oriented(values, to_lps @ image.affine[:3, :3])


def read_nrrd(path: Path) -> Grid:
    """A NRRD volume, oriented by its space and its directions."""
    import nrrd

    with reading(path):
        values, header = nrrd.read(str(path))
        signs = _NRRD_SPACES.get(str(header.get("space")).lower())
        if signs is None:
            raise ImageError(f"{path}: space is {header.get('space')!r}, expected one of {', '.join(_NRRD_SPACES)}")
        return oriented(values, np.diag(signs) @ np.asarray(header["space directions"], dtype=np.float64).T)


def oriented(values: NDArray[Any], directions: NDArray[Any]) -> Grid:
    """Turn [i, j, k] into [slices towards the head, rows towards the back, columns towards the left].

    directions: [3, 3], column a is the step (mm, left-posterior-superior) along array axis a; oblique axes are taken as
    the nearest body axis.
    """
    nearest = np.abs(directions).argmax(axis=0)
    if sorted(nearest) != [0, 1, 2]:
        raise ImageError(f"axes are too oblique: {directions.tolist()}")
    order = [int(np.flatnonzero(nearest == body)[0]) for body in (2, 1, 0)]
    turned = values.transpose(order)
    for axis, source in enumerate(order):
        if directions[nearest[source], source] < 0:
            turned = np.flip(turned, axis)
    step = [round(float(np.linalg.norm(directions[:, source])), 6) for source in order]
    return Grid(turned, (step[0], step[1], step[2]))


def read_dicom(path: Path, frame: int = 0) -> Picture:
    """One frame: HU (CT, clipped to -1024..3071), stored values (MONOCHROME1 inverted), or uint8 colour."""
    import pydicom

    with reading(path):
        data = pydicom.dcmread(path)
        pixels = _pixels(data, frame)
        return Picture(np.ascontiguousarray(pixels), _spacing(data), _region(data))


def _pixels(data: Any, frame: int) -> NDArray[Any]:
    from pydicom.pixels.processing import apply_color_lut
    from pydicom.pixels.utils import pixel_array

    pixels = pixel_array(data, index=frame if int(data.get("NumberOfFrames", 1)) > 1 else None)
    if data.PhotometricInterpretation == "PALETTE COLOR":
        colours = apply_color_lut(pixels, data)
        return (colours >> 8).astype(np.uint8) if colours.dtype == np.uint16 else colours
    if pixels.ndim == 3:
        return pixels.astype(np.uint8)
    if data.PhotometricInterpretation == "MONOCHROME1":
        return (int(pixels.max()) - pixels.astype(np.int32)).astype(np.uint16)
    if data.Modality == "CT":
        values = pixels * float(data.get("RescaleSlope", 1)) + float(data.get("RescaleIntercept", 0))
        return hounsfield(values)
    return pixels.astype(np.int16) if pixels.dtype.kind == "i" else pixels.astype(np.uint16)


def _spacing(data: Any) -> tuple[float, float] | None:
    """Row and column spacing; some files state 0, which is none."""
    for key in ("PixelSpacing", "ImagerPixelSpacing"):
        value = data.get(key)
        if value is not None and float(value[0]) > 0 and float(value[1]) > 0:
            return float(value[0]), float(value[1])
    for region in _tissue_regions(data):
        return float(region.PhysicalDeltaY) * _MM_PER_CM, float(region.PhysicalDeltaX) * _MM_PER_CM
    return None


def _region(data: Any) -> tuple[int, int, int, int] | None:
    """The box around all tissue regions of an ultrasound screen."""
    found = _tissue_regions(data)
    if not found:
        return None
    top = min(int(r.RegionLocationMinY0) for r in found)
    left = min(int(r.RegionLocationMinX0) for r in found)
    bottom = min(max(int(r.RegionLocationMaxY1) for r in found) + 1, int(data.Rows))
    right = min(max(int(r.RegionLocationMaxX1) for r in found) + 1, int(data.Columns))
    return top, left, bottom - top, right - left


def _tissue_regions(data: Any) -> list[Any]:
    regions = data.get("SequenceOfUltrasoundRegions") or []
    return [r for r in regions if r.RegionDataType == _TISSUE and r.get("PhysicalUnitsXDirection") == _CM_UNITS]


def read_picture(path: Path, frame: int = 0) -> NDArray[Any]:
    """A JPEG, PNG or TIFF frame: [rows, cols] or [rows, cols, 3]."""
    from PIL import Image

    with reading(path), Image.open(path) as image:
        if getattr(image, "n_frames", 1) > 1:
            image.seek(frame)
        pixels = np.asarray(image)
        return pixels[..., :3] if pixels.ndim == 3 else pixels


def read_npz(path: Path, key: str) -> NDArray[Any]:
    """One array of a numpy archive."""
    with reading(path), np.load(path, allow_pickle=False) as archive:
        return archive[key]


def read_structures(path: Path) -> Mapping[int, str]:
    """Label names of a TotalSegmentator table with the columns `id` and `structure`."""
    with reading(path), path.open(newline="") as file:
        return {int(row["id"]): row["structure"].replace("_", " ") for row in csv.DictReader(file)}


def read_atlas(path: Path) -> Mapping[int, str]:
    """Label names of an atlas: lines of "number name ..."."""
    with reading(path):
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        return {int(row[0]): row[1].replace("_", " ") for row in rows}
