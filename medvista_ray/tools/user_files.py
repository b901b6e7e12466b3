"""A user's own DICOM, PNG, JPEG, TIFF, NIfTI or NRRD file as an episode picture.

Invariant: what the file states (unit, pixel spacing, orientation) is kept and nothing is guessed: a file that names no
modality gives an "unknown" one. Called by the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from medvista_ray.assets import readers
from medvista_ray.errors import ImageError
from medvista_ray.types import MedImage, VolumeImage

_MODALITIES = {"CT": "CT", "MR": "MRI", "US": "ultrasound", "CR": "X-ray", "DX": "X-ray", "MG": "X-ray", "NM": "bone scan"}
_SUFFIXES = {
    "NIfTI": (".nii", ".nii.gz"),
    "NRRD": (".nrrd", ".nhdr"),
    "picture": (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp"),
}
_ABDOMEN_HU = (-160.0, 240.0)
_SHOWN_PERCENT = (0.5, 99.5)


def open_file(path: Path) -> MedImage:
    """The file's picture; a scan shows its middle slice. A name that tells no format is taken for DICOM.

    Raises ImageError that names the file and what is wrong.
    """
    if not path.is_file():
        raise ImageError(f"{path}: there is no such file")
    name = path.name.lower()
    kind = next((kind for kind, suffixes in _SUFFIXES.items() if name.endswith(suffixes)), "DICOM")
    if kind == "picture":
        pixels = readers.read_picture(path)
        return MedImage(pixels=_plain(pixels, path), modality="unknown")
    if kind == "DICOM":
        return _dicom(path)
    grid = readers.read_nifti(path) if kind == "NIfTI" else readers.read_nrrd(path)
    values = np.ascontiguousarray(grid.values)
    window = _shown(values[len(values) // 2])
    return VolumeImage.of(values, "unknown", grid.spacing_mm, window=window)


def _dicom(path: Path) -> MedImage:
    import pydicom

    with readers.reading(path):
        header = pydicom.dcmread(path, stop_before_pixels=True)
        modality, photometric = str(header.get("Modality", "")), str(header.get("PhotometricInterpretation", ""))
    picture = readers.read_dicom(path)
    is_ct = modality == "CT" and photometric.startswith("MONOCHROME2")
    window = None if picture.pixels.ndim == 3 else _ABDOMEN_HU if is_ct else _shown(picture.pixels)
    return MedImage(
        pixels=picture.pixels,
        modality=_MODALITIES.get(modality, "unknown"),
        spacing_mm=picture.spacing_mm,
        unit="HU" if is_ct else "intensity",
        window=window,
    )


def _plain(pixels: Any, path: Path) -> Any:
    """[H, W] or [H, W, 3]; black and white become 0 and 255."""
    if pixels.dtype == bool:
        return pixels.astype(np.uint8) * 255
    if pixels.ndim not in (2, 3) or pixels.dtype.kind not in "uif":
        raise ImageError(f"{path}: pixels are {pixels.dtype}{list(pixels.shape)}, a grey or colour picture needed")
    return pixels


def _shown(values: Any) -> tuple[float, float]:
    """Black and white point: nearly the whole range."""
    low, high = np.percentile(values, _SHOWN_PERCENT)
    return float(low), float(max(high, low + 1e-3))
