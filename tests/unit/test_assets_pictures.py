"""Reading files: orientation, broken files, converted copies; no package data needed."""

from __future__ import annotations

import itertools
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from PIL import Image

from medvista_ray.assets import readers, store
from medvista_ray.assets.volumes import Kind, open_plate, open_volume, subjects
from medvista_ray.errors import AssetError, ImageError, UnknownNameError
from tests.unit import asset_packages as packages

_SIZES = (4, 5, 6)
"""Voxels towards the left, the back and the head."""
_STEPS = (0.5, 0.7, 2.0)
_MARKED = (1, 3, 5)
"""The marked voxel in left, back, head order."""


def stored(order: tuple[int, ...], signs: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """One and the same scan as a file may store it: axis a runs along body axis order[a], forwards or backwards."""
    body = np.zeros(_SIZES, np.int16)
    body[_MARKED] = 7
    values = body.transpose(order)
    directions = np.zeros((3, 3))
    for axis, (target, sign) in enumerate(zip(order, signs, strict=True)):
        directions[target, axis] = sign * _STEPS[target]
        values = np.flip(values, axis) if sign < 0 else values
    return np.ascontiguousarray(values), directions


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_every_way_of_storing_a_scan_is_shown_the_same_way(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    values, directions = stored(order, signs)
    grid = readers.oriented(values, directions)
    assert grid.values.shape == (6, 5, 4)
    assert grid.spacing_mm == (2.0, 0.7, 0.5)
    assert np.argwhere(grid.values == 7).tolist() == [[5, 3, 1]]


def test_nifti_and_nrrd_of_one_scan_agree(tmp_path: Path) -> None:
    values, directions = stored((0, 1, 2), (1, -1, 1))
    affine = np.eye(4)
    affine[:3, :3] = np.diag([-1.0, -1.0, 1.0]) @ directions
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "a.nii.gz")
    header = {"space": "left-posterior-superior", "space directions": directions.T, "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "a.nrrd"), values, header)
    one, two = readers.read_nifti(tmp_path / "a.nii.gz"), readers.read_nrrd(tmp_path / "a.nrrd")
    assert np.array_equal(one.values, two.values)
    assert one.spacing_mm == two.spacing_mm == (2.0, 0.7, 0.5)
    assert np.argwhere(one.values == 7).tolist() == [[5, 3, 1]]


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("a.nii.gz", readers.read_nifti),
        ("a.nrrd", readers.read_nrrd),
        ("a.dcm", readers.read_dicom),
        ("a.png", readers.read_picture),
        ("a.npz", lambda path: readers.read_npz(path, "x")),
        ("a.csv", readers.read_structures),
        ("a.txt", readers.read_atlas),
    ],
)
def test_a_broken_file_is_an_image_error_that_names_it(tmp_path: Path, name: str, read) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x1f\x8bnot what it says" * 20)
    with pytest.raises(ImageError, match=name):
        read(path)
    with pytest.raises(ImageError, match="missing-"):
        read(tmp_path / f"missing-{name}")


def test_a_picture_that_ends_too_early_is_an_image_error(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    assert np.array_equal(readers.read_picture(tmp_path / "whole.png"), noise)
    with pytest.raises(ImageError, match=r"cut\.png"):
        readers.read_picture(tmp_path / "cut.png")


def test_values_that_do_not_fit_are_refused_not_wrapped() -> None:
    assert readers.cast(np.array([1.6, -0.4]), "int16", Path("a")).tolist() == [2, 0]
    with pytest.raises(ImageError, match="do not fit uint8"):
        readers.cast(np.array([0, 256]), "uint8", Path("a"))
    assert readers.hounsfield(np.array([-2048.0, 40.4, 9000.0])).tolist() == [-1024, 40, 3071]


@pytest.fixture
def asset_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that counts as the asset stardist."""
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path / "cache"))
    asset = store.find("stardist")
    folder = store.folder_of(asset)
    folder.mkdir(parents=True)
    identity = store.json.dumps({"identity": store.identity(asset), "files": {}})
    (folder / store.MANIFEST).write_text(identity)
    return asset.name


def test_a_converted_copy_is_made_once_and_mended_if_cut_short(asset_name: str) -> None:
    built: list[int] = []

    def build() -> np.ndarray:
        built.append(1)
        return np.arange(1000, dtype=np.int16)

    first = store.derived_array(asset_name, "x", build)
    second = store.derived_array(asset_name, "x", build)
    assert len(built) == 1
    assert np.array_equal(first, second)
    assert not second.flags.writeable
    path = store.asset_dir(asset_name) / "derived" / "x.npy"
    path.write_bytes(path.read_bytes()[:200])
    assert np.array_equal(store.derived_array(asset_name, "x", build), np.arange(1000))
    assert len(built) == 2


def test_a_full_disk_under_a_converted_copy_is_an_asset_error(asset_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(store.errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(store.os, "replace", full)
    with pytest.raises(AssetError, match="needs 8 bytes"):
        store.derived_array(asset_name, "x", lambda: np.zeros(4, np.int16))
    assert list((store.asset_dir(asset_name) / "derived").iterdir()) == []


def test_an_unknown_subject_is_named_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'brain1'"):
        open_volume("brain-1")
    with pytest.raises(UnknownNameError, match="plate 'lung1' is not known"):
        open_plate("lung1")


def test_every_subject_belongs_to_an_asset_of_the_catalog() -> None:
    assert len({s.id for s in subjects()}) == len(subjects())
    assert all(store.find(s.asset) for s in subjects())
    assert all(s.has_labels for s in subjects() if s.kind == Kind.VOLUME)


def test_the_little_packages_are_reproducible(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one, two = packages.build_debian(tmp_path / "a"), packages.build_debian(tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()
