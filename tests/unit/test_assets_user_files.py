"""Files of a user's own: every kind of picture, scans in true spacing and orientation, and whatever is broken or too large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from medvista_ray.assets import user_files
from medvista_ray.assets.user_files import open_image
from medvista_ray.errors import ImageError
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.parse.measure import Measure
from medvista_ray.tools.refine.enhance import Enhance
from medvista_ray.types import MedImage, VolumeImage

SHAPE = (6, 20, 30)
"""Slices, rows, columns of the scan."""
STEPS = (2.5, 0.5, 0.8)


def body() -> np.ndarray:
    """Air with a block of 60 HU: slices 2..4, rows 5..14, columns 10..24."""
    values = np.full(SHAPE, -1000, np.int16)
    values[2:5, 5:15, 10:25] = 60
    return values


def write_slice(path: Path, pixels: np.ndarray, position: tuple[float, float, float], **tags: Any) -> None:
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data = FileDataset(path, {}, file_meta=meta, preamble=b"\0" * 128)
    data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
    data.Modality, data.SeriesInstanceUID = "CT", "1.2.3"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 16, 15, 0
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.PixelSpacing, data.ImageOrientationPatient = [STEPS[1], STEPS[2]], [1, 0, 0, 0, 1, 0]
    data.ImagePositionPatient = list(position)
    for name, value in tags.items():
        setattr(data, name, value)
    data.PixelData = (pixels.astype(np.int32) + 1024).astype(np.uint16).tobytes()
    data.save_as(path, enforce_file_format=True)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    """The scan as a series whose file names run against its positions, with a foreign file beside it."""
    folder = tmp_path / "series"
    folder.mkdir()
    for number, pixels in enumerate(body()):
        write_slice(folder / f"{9 - number}.dcm", pixels, (0.0, 0.0, number * STEPS[0]))
    (folder / "README.txt").write_text("not a picture")
    return folder


def test_a_series_is_one_scan_ordered_by_position_in_hounsfield_units(series: Path) -> None:
    scan = open_image(series)
    assert isinstance(scan, VolumeImage)
    assert np.array_equal(scan.slices, body())
    assert (scan.unit, scan.modality, scan.slice_mm, scan.spacing_mm) == ("HU", "CT", 2.5, (0.5, 0.8))
    assert scan.slice_index == 3
    assert np.array_equal(scan.pixels, body()[3])


def test_measuring_a_scan_uses_the_true_spacing_in_every_plane(series: Path) -> None:
    context = ToolContext({0: open_image(series)}, {})
    for plane, index, size in (("axial", 3, (12.0, 5.0)), ("coronal", 9, (12.0, 7.5)), ("sagittal", 15, (5.0, 7.5))):
        args = Enhance.Args.model_validate({"slice_index": index, "params": {"plane": plane}})
        picture = Enhance().run(args, context).images[0]
        rows, columns = np.flatnonzero((picture.pixels > -470).any(1)), np.flatnonzero((picture.pixels > -470).any(0))
        assert picture.spacing_mm is not None
        sides = len(columns) * picture.spacing_mm[1], len(rows) * picture.spacing_mm[0]
        assert sides == pytest.approx(size, abs=0.85)
        whole = Measure().run(Measure.Args.model_validate({"bbox": [0, 0, 1000, 1000]}), ToolContext({0: picture}, {}))
        assert whole.data["width"] == pytest.approx({"axial": 24.0, "coronal": 24.0, "sagittal": 10.0}[plane])
        assert whole.data["height"] == pytest.approx({"axial": 10.0, "coronal": 15.0, "sagittal": 15.0}[plane])


def test_the_head_is_on_top_of_a_coronal_slice() -> None:
    values = body()
    values[5] = 400
    scan = VolumeImage.of(values, "CT", STEPS, unit="HU")
    assert (scan.at(0, "coronal").pixels[0] == 400).all()
    assert (scan.at(0, "sagittal").pixels[0] == 400).all()
    assert scan.at(0, "sagittal").size == (6, 20)


def test_nifti_and_nrrd_in_any_space_agree_with_the_series(series: Path, tmp_path: Path) -> None:
    stored = np.ascontiguousarray(body().transpose(2, 1, 0))
    nibabel.save(nibabel.Nifti1Image(stored, np.diag([-STEPS[2], -STEPS[1], STEPS[0], 1.0])), tmp_path / "a.nii.gz")
    for space, signs in (("left-posterior-superior", (1, 1, 1)), ("right-anterior-superior", (-1, -1, 1))):
        header = {"space": space, "space directions": np.diag(np.array(signs) * STEPS[::-1]), "space origin": [0, 0, 0]}
        nrrd.write(str(tmp_path / f"{space}.nrrd"), stored, header)
    expected = open_image(series)
    for name in ("a.nii.gz", "left-posterior-superior.nrrd", "right-anterior-superior.nrrd"):
        scan = open_image(tmp_path / name, "CT")
        assert isinstance(scan, VolumeImage)
        assert np.array_equal(scan.slices, expected.slices)  # type: ignore[attr-defined]
        assert (scan.spacing_mm, scan.slice_mm, scan.key) == (expected.spacing_mm, 2.5, expected.key)


def test_a_series_with_a_slice_missing_doubled_or_turned_is_refused(series: Path) -> None:
    (series / "6.dcm").rename(series.parent / "6.dcm")
    with pytest.raises(ImageError, match="missing or doubled"):
        open_image(series)
    write_slice(series / "6.dcm", body()[3], (0.0, 0.0, 7.5), ImageOrientationPatient=[0, 1, 0, 1, 0, 0])
    with pytest.raises(ImageError, match="not parallel"):
        open_image(series)
    write_slice(series / "6.dcm", body()[3][:, :-1], (0.0, 0.0, 7.5))
    with pytest.raises(ImageError, match="differ in size"):
        open_image(series)


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> MedImage:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return open_image(path)


def test_every_kind_of_picture_becomes_grey_numbers_or_three_channels(tmp_path: Path) -> None:
    rgb = np.zeros((5, 7, 3), np.uint8)
    rgb[..., 0] = 204
    rgb[..., 1:] = 51
    deep = np.arange(35, dtype=np.uint16).reshape(5, 7) * 1000
    assert np.array_equal(save(tmp_path / "16.png", deep).pixels, deep)
    assert save(tmp_path / "f.tiff", np.array([[np.nan, 2.5]], np.float32)).pixels.tolist() == [[0.0, 2.5]]
    assert np.array_equal(save(tmp_path / "p.png", rgb, "P").pixels, rgb)  # a colour of the web palette
    assert save(tmp_path / "c.jpg", rgb, "CMYK").pixels.shape == (5, 7, 3)
    assert save(tmp_path / "1.png", rgb[..., 0] > 0).pixels.dtype == np.uint8
    alpha = np.dstack([rgb, np.zeros((5, 7), np.uint8)])
    assert save(tmp_path / "a.png", alpha).pixels.max() == 0
    assert save(tmp_path / "one.png", rgb[:1, :1]).size == (1, 1)


def test_what_is_too_large_is_refused_before_its_pixels_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(user_files, "MAX_PIXELS", 30)
    monkeypatch.setattr(user_files, "MAX_VOXELS", 100)
    Image.new("L", (7, 5)).save(tmp_path / "bomb.png")
    nibabel.save(nibabel.Nifti1Image(np.zeros((5, 5, 5), np.int16), np.eye(4)), tmp_path / "bomb.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2, 2), np.int16), np.eye(4)), tmp_path / "four.nii")
    for name, words in (("bomb.png", "at most 30"), ("bomb.nii", "at most 100"), ("four.nii", "three dimensions")):
        with pytest.raises(ImageError, match=words):
            open_image(tmp_path / name)


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a.nii", "a.nii.gz", "a.nrrd", "a.xyz"])
def test_broken_and_missing_files_are_image_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ImageError, match=name):
        open_image(tmp_path / name)
    (tmp_path / name).write_bytes(b"\x1f\x8bnot what it says" * 20)
    with pytest.raises(ImageError, match=name):
        open_image(tmp_path / name)


def test_a_truncated_dicom_is_an_image_error(series: Path, tmp_path: Path) -> None:
    whole = (series / "9.dcm").read_bytes()
    assert open_image(series / "9.dcm").unit == "HU"
    (tmp_path / "cut.dcm").write_bytes(whole[: len(whole) - 400])
    with pytest.raises(ImageError, match=r"cut\.dcm"):
        open_image(tmp_path / "cut.dcm")
    (tmp_path / "head.dcm").write_bytes(whole[:200])
    with pytest.raises(ImageError, match=r"head\.dcm"):
        open_image(tmp_path / "head.dcm")
