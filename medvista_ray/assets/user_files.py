"""Open a file of the user's own: `open_image` for pictures, DICOM, DICOM series (a folder), NIfTI and NRRD.

Invariants: what comes back is a `MedImage` in native values (a scan is a `VolumeImage`) whose pixels are finite numbers,
grey or three-channel uint8; a file that is broken, too large or of no known kind is an ImageError that names it, and the
size is looked at before the pixels are. Called by the command line and by notebooks.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.assets import readers
from medvista_ray.errors import ImageError
from medvista_ray.types import MedImage, VolumeImage

MAX_PIXELS = 100_000_000
"""Of a picture."""
MAX_VOXELS = 400_000_000
"""Of a scan."""
_CT_WINDOW = (-160.0, 240.0)
"""Soft tissue."""
_DISPLAY_PERCENTILES = (0.5, 99.5)
_MODALITIES = {"CT": "CT", "MR": "MRI", "CR": "X-ray", "DX": "X-ray", "RG": "X-ray", "MG": "X-ray", "US": "ultrasound"}
"""DICOM's defined terms (PS3.3 C.7.3.1.1.1) in the words of this project; others stay as they are."""
_NIFTI, _NRRD = (".nii", ".nii.gz"), (".nrrd", ".nhdr")
_DICOM_MAGIC = b"DICM"


def open_image(path: Path, modality: str = "") -> MedImage:
    """The picture or scan in `path`; `modality` is for formats that do not tell it ("CT" makes values HU).

    Raises ImageError.
    """
    name = path.name.lower()
    if path.is_dir():
        from medvista_ray.assets.series import read_series

        grid, told = read_series(path)
        return _volume(grid, modality or _MODALITIES.get(told, told), path)
    if name.endswith(_NIFTI):
        return _volume(_nifti(path), modality or "unknown", path)
    if name.endswith(_NRRD):
        return _volume(_nrrd(path), modality or "unknown", path)
    return _dicom(path, modality) if _is_dicom(path) else _picture(path, modality)


def _nifti(path: Path) -> readers.Grid:
    import nibabel

    with readers.reading(path):
        _check_volume(path, tuple(nibabel.load(path).shape))  # pyright: ignore
    return readers.read_nifti(path)


def _nrrd(path: Path) -> readers.Grid:
    import nrrd

    with readers.reading(path):
        _check_volume(path, tuple(int(side) for side in nrrd.read_header(str(path))["sizes"]))
    return readers.read_nrrd(path)


def _check_volume(path: Path, shape: tuple[int, ...]) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ImageError(f"{path}: shape {shape}: three dimensions needed")
    _check_size(path, shape, MAX_VOXELS)


def _check_size(path: Path, shape: tuple[int, ...], limit: int) -> None:
    if (number := int(np.prod([float(side) for side in shape]))) > limit:
        raise ImageError(f"{path}: {' x '.join(map(str, shape))} = {number} pixels; at most {limit}")


def _volume(grid: readers.Grid, modality: str, path: Path) -> VolumeImage:
    values = readers.hounsfield(grid.values) if modality == "CT" else _finite(grid.values)
    is_ct = modality == "CT"
    window = _CT_WINDOW if is_ct else _display_window(values)
    spacing = grid.spacing_mm if min(grid.spacing_mm) > 0 and np.isfinite(grid.spacing_mm).all() else None
    unit = "HU" if is_ct else "signal"
    return VolumeImage.of(np.ascontiguousarray(values), modality, spacing, unit=unit, window=window, source=path.name)


def _display_window(values: NDArray[Any]) -> tuple[float, float] | None:
    low, high = (float(value) for value in np.percentile(values, _DISPLAY_PERCENTILES))
    return (low, high) if low < high else None


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """NaN becomes 0, infinities the largest finite numbers: a meter must not meet them."""
    return np.nan_to_num(values) if values.dtype.kind == "f" else values


def _is_dicom(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return path.suffix.lower() == ".dcm" or file.read(132)[128:] == _DICOM_MAGIC
    except OSError as error:
        raise ImageError(f"{path} cannot be read: {error.strerror}") from error


def _dicom(path: Path, modality: str) -> MedImage:
    """A single picture, or the frames of a film as slices without a distance."""
    import pydicom

    with readers.reading(path):
        header: Any = pydicom.dcmread(path, stop_before_pixels=True)
        shape = int(header.get("NumberOfFrames", 1) or 1), int(header.Rows), int(header.Columns)
        told = str(header.get("Modality", ""))
    _check_size(path, shape, MAX_PIXELS if shape[0] == 1 else MAX_VOXELS)
    modality = modality or _MODALITIES.get(told, told or "unknown")
    is_ct = told == "CT"
    first = readers.read_dicom(path)
    window = None if first.pixels.ndim == 3 else _CT_WINDOW if is_ct else _display_window(first.pixels)
    unit = "HU" if is_ct else "intensity"
    if shape[0] == 1:
        return MedImage(first.pixels, modality, first.spacing_mm, unit, window, path.name)
    frames = np.stack([readers.read_dicom(path, number).pixels for number in range(shape[0])])
    middle = shape[0] // 2
    return VolumeImage(frames[middle], modality, first.spacing_mm, unit, window, path.name, slices=frames, slice_index=middle)


def _picture(path: Path, modality: str) -> MedImage:
    from PIL import Image

    with readers.reading(path), Image.open(path) as image:
        _check_size(path, image.size[::-1], MAX_PIXELS)
        pixels = _pixels(image)
    is_grey_byte = pixels.ndim == 2 and pixels.dtype == np.uint8
    return MedImage(pixels, modality or "unknown", window=(0.0, 255.0) if is_grey_byte else None, source=path.name)


def _pixels(image: Any) -> NDArray[Any]:
    """16-bit and float grey as they are; 1-bit and 8-bit grey as uint8; all else (palette, CMYK, alpha over black) as RGB."""
    if image.mode.startswith(("I", "F")):
        return _finite(np.asarray(image))
    if image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        from PIL import Image

        shown = image.convert("RGBA")
        return np.asarray(Image.alpha_composite(Image.new("RGBA", shown.size, (0, 0, 0, 255)), shown).convert("RGB"))
    return np.asarray(image.convert("RGB"))
