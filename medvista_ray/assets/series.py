"""Put the files of a DICOM series together to one volume in display orientation.

Invariant: slices lie where their positions say, not where file names or instance numbers do; a series with a slice missing,
doubled or of another size is refused, because its lengths would be wrong. Called by `user_files`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.assets.readers import Grid, oriented, read_dicom, reading
from medvista_ray.errors import ImageError

_MAX_GAP = 0.1
"""Of the usual distance between slices: by how much one may differ."""


@dataclass(frozen=True)
class _Slice:
    """Where one file's picture lies, in millimetres (left, posterior, superior)."""

    path: Path
    series: str
    modality: str
    origin: NDArray[np.float64]
    """[3], its first pixel."""
    axes: NDArray[np.float64]
    """[3, 3] columns: step to the next row, to the next column, unit normal."""


def read_series(folder: Path) -> tuple[Grid, str]:
    """The volume of a folder's largest series, and its DICOM modality. Raises ImageError if it is not one whole volume."""
    by_series: dict[str, list[_Slice]] = defaultdict(list)
    for path in sorted(folder.iterdir()):
        if path.is_file() and (found := _placed(path)):
            by_series[found.series].append(found)
    if not by_series:
        raise ImageError(f"{folder}: no DICOM slice with a position in it")
    slices = max(by_series.values(), key=len)
    ordered = sorted(slices, key=lambda one: float(one.origin @ one.axes[:, 2]))
    step = _step(folder, ordered)
    pictures = [read_dicom(one.path).pixels for one in ordered]
    if len({picture.shape for picture in pictures}) > 1:
        raise ImageError(f"{folder}: slices differ in size: {sorted({picture.shape for picture in pictures})}")
    axes = ordered[0].axes
    directions = np.stack([step, axes[:, 0], axes[:, 1]], axis=1)
    return oriented(np.stack(pictures), directions), ordered[0].modality


def _placed(path: Path) -> _Slice | None:
    """Where the file's picture lies; None if it is no DICOM picture with a place."""
    import pydicom
    from pydicom.errors import InvalidDicomError

    try:
        with reading(path):
            data: Any = pydicom.dcmread(path, stop_before_pixels=True)
    except ImageError as error:
        if isinstance(error.__cause__, InvalidDicomError):
            return None
        raise
    if any(key not in data for key in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing")):
        return None
    with reading(path):
        along_row, along_column = np.asarray(data.ImageOrientationPatient, float).reshape(2, 3)
        down, right = (float(value) for value in data.PixelSpacing)
        axes = np.stack([along_column * down, along_row * right, np.cross(along_row, along_column)], axis=1)
        origin = np.asarray(data.ImagePositionPatient, float)
        return _Slice(path, str(data.get("SeriesInstanceUID", "")), str(data.get("Modality", "")), origin, axes)


def _step(folder: Path, ordered: list[_Slice]) -> NDArray[np.float64]:
    """[3] from one slice to the next. Raises ImageError if they are not parallel and evenly spaced."""
    if len(ordered) < 2:
        raise ImageError(f"{folder}: a single slice is no volume; name the file")
    if any(not np.allclose(one.axes, ordered[0].axes, atol=1e-3) for one in ordered):
        raise ImageError(f"{folder}: slices are not parallel")
    steps = np.diff(np.stack([one.origin for one in ordered]), axis=0)
    lengths = np.linalg.norm(steps, axis=1)
    usual = float(np.median(lengths))
    if usual == 0.0 or np.abs(lengths - usual).max() > _MAX_GAP * usual:
        raise ImageError(
            f"{folder}: distances between slices are {lengths.min():g}..{lengths.max():g} mm: missing or doubled ones"
        )
    return np.median(steps, axis=0)
