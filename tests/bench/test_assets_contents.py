"""What the real packages hold: shapes, spacing, plausible values, labels, knowledge. Needs the asset cache."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from medvista_ray.assets import asset_dir, catalog
from medvista_ray.assets.knowledge import documents
from medvista_ray.assets.store import is_whole
from medvista_ray.assets.volumes import Kind, Volume, open_plate, open_volume, subjects
from medvista_ray.errors import ImageError

pytestmark = [
    pytest.mark.assets,
    pytest.mark.skipif(
        not all(is_whole(a) for a in catalog() if not a.optional),
        reason="the cache lacks assets: medvista-ray assets fetch",
    ),
]
TUMOURS = {"lung1": (837, 3), "lung2": (24_644, 11), "brain1": (4_137, 7), "brain2": (453, 3), "breast1": (143, 3)}


def present(kind: Kind) -> list[str]:
    """Optional assets may be absent."""
    whole = {a.name for a in catalog() if is_whole(a)}
    return [s.id for s in subjects() if s.kind == kind and s.asset in whole]


def label(volume: Volume, name: str) -> np.ndarray:
    assert volume.labels is not None
    value = next(key for key, text in volume.label_names.items() if text == name)
    return np.asarray(volume.labels) == value


@pytest.mark.parametrize("subject", TUMOURS)
def test_a_tumour_has_its_published_number_of_voxels_and_slices(subject: str) -> None:
    volume = open_volume(subject)
    assert volume.labels is not None
    mask = np.asarray(volume.labels) == 1
    assert (int(mask.sum()), int(mask.any((1, 2)).sum())) == TUMOURS[subject]
    assert volume.values.dtype == np.int16


def test_the_organs_of_the_ct_have_plausible_densities() -> None:
    ct = open_volume("ct-chest")
    assert ct.values.shape == (133, 512, 512)
    assert ct.spacing_mm == (2.5, 0.703125, 0.703125)
    assert len(np.unique(np.asarray(ct.labels)[::4])) > 80
    expected = {"liver": (71, 5), "aorta": (371, 15)}
    for organ, (hu, slack) in expected.items():
        assert abs(float(ct.values[label(ct, organ)].mean()) - hu) < slack, organ
    assert int(ct.values.min()) == -1024


def test_the_ct_is_shown_with_the_patients_right_on_the_left_and_the_back_below() -> None:
    ct = open_volume("ct-chest")
    centre = {n: np.argwhere(label(ct, n)).mean(0) for n in ("liver", "spleen", "aorta", "heart", "vertebrae T10")}
    assert centre["liver"][2] < centre["spleen"][2]
    assert centre["heart"][1] < centre["vertebrae T10"][1]
    assert centre["liver"][0] < centre["heart"][0]


def test_the_masks_lie_on_tissue_of_their_kind() -> None:
    lung = open_volume("lung2")
    inside = lung.values[label(lung, "tumour")]
    assert -100 < float(np.median(inside)) < 120
    brain = open_volume("brain1")
    assert float(brain.values[label(brain, "tumour")].mean()) > float(brain.values[brain.values > 100].mean())


def test_a_volume_is_mapped_read_only_and_a_slice_of_it_travels() -> None:
    volume = open_volume("lung1")
    assert not volume.values.flags.writeable
    plane = volume.values[10]
    assert np.array_equal(pickle.loads(pickle.dumps(plane)), plane)
    assert len(pickle.dumps(plane)) < 2 * plane.nbytes


def test_every_subject_opens() -> None:
    for subject in present(Kind.PLATE):
        plate = open_plate(subject)
        assert plate.pixels.ndim == 2 or plate.pixels.shape[2:] == (3,)
        assert plate.pixels.ndim == 2 or plate.pixels.dtype == np.uint8
        assert float(np.ptp(plate.pixels.astype(np.float32))) > 50, subject
        assert plate.spacing_mm is None or min(plate.spacing_mm) > 0
        assert plate.labels is None or plate.labels.shape == plate.pixels.shape[:2]
    for subject in present(Kind.VOLUME):
        volume = open_volume(subject)
        assert volume.labels is not None
        assert volume.labels.shape == volume.values.shape


@pytest.mark.parametrize(("subject", "count"), [("nuclei2d", 125), ("hgsc-nest", 1294)])
def test_nuclei_are_counted_as_published(subject: str, count: int) -> None:
    labels = open_plate(subject).labels
    assert labels is not None
    assert len(np.unique(labels)) - 1 == count


def test_nuclei_have_one_class_each_and_lymphocytes_are_the_smallest() -> None:
    plate = open_plate("hgsc-nest")
    assert plate.labels is not None
    assert plate.classes is not None
    assert np.array_equal(plate.labels > 0, plate.classes > 0)
    pairs = np.unique(np.stack([plate.labels.ravel(), plate.classes.ravel()]), axis=1)
    assert pairs.shape[1] == 1294 + 1
    assert np.bincount(pairs[1, 1:]).tolist() == [0, 373, 633, 288]
    areas = {name: _mean_area(plate.labels[plate.classes == value]) for value, name in plate.class_names.items()}
    assert areas["neoplastic"] > areas["connective"] > areas["inflammatory"]


def _mean_area(inside: np.ndarray) -> float:
    return len(inside) / len(np.unique(inside))


def test_radiographs_show_bone_brighter_than_air_and_ct_is_in_hu() -> None:
    chest = open_plate("xr-chest").pixels.astype(float)
    middle = chest[900:1100]
    assert middle[:, 880:960].mean() > middle[:, 500:560].mean()  # spine against lung
    for subject in ("ct-head", "ct-pancreas"):
        plate = open_plate(subject)
        assert plate.unit == "HU"
        assert int(plate.pixels.min()) == -1024


def test_the_spacing_of_ultrasound_comes_from_its_scan_region() -> None:
    plate = open_plate("us-b")
    assert plate.spacing_mm == pytest.approx((0.5105, 0.5105), abs=1e-4)
    assert plate.region is not None
    assert open_plate("xr-chest").spacing_mm is None  # its file states 0


def test_a_corrupt_file_in_the_cache_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = asset_dir("pydicom-data")
    monkeypatch.setenv("MEDVISTA_CACHE", str(tmp_path))
    copy = tmp_path / "assets" / source.name
    (copy / "data_store" / "data").mkdir(parents=True)
    (copy / "manifest.json").write_bytes((source / "manifest.json").read_bytes())
    whole = (source / "data_store" / "data" / "693_UNCR.dcm").read_bytes()
    (copy / "data_store" / "data" / "693_UNCR.dcm").write_bytes(whole[:50_000])
    with pytest.raises(ImageError, match=r"693_UNCR\.dcm"):
        open_plate("ct-head")


def test_knowledge_has_its_terms_codes_and_digests() -> None:
    everything = documents()
    by_id = {document.id: document for document in everything}
    assert len(by_id) == len(everything)
    assert len(documents(["ICD-10-CM"])) == 46_881
    assert len(documents(["HPO"])) > 16_454
    assert len(documents(["guideline"])) > 1_000
    assert by_id["J18.9"].title == "Pneumonia, unspecified organism"
    assert by_id["A00.0"].text == "Includes: Classical cholera."
    assert "Multicystic dysplastic kidney" in by_id["HP:0000003"].text
    assert all(document.reference for document in documents(["guideline"])[:20])
