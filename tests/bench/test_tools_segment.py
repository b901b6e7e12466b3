"""segment_medical on real tumours with expert masks, and what its cache promises."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from medvista_ray.errors import AssetError, ToolArgumentError
from medvista_ray.tools.base import ToolContext, ToolOptions
from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.tools.localize.segment_medical import SegmentMedical
from medvista_ray.types import Box, MedImage, ToolResult

pytestmark = pytest.mark.assets


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SegmentMedical]:
    """The tool with its real weights, nothing kept on disk."""
    import torch

    threads = torch.get_num_threads()
    made = SegmentMedical(ToolOptions(num_threads=1, disk_cache_mib=0))
    made.setup()
    yield made
    torch.set_num_threads(threads)


def tumour(name: str, window: tuple[float, float] | None, rank: int = 0) -> tuple[MedImage, NDArray[np.bool_]]:
    """The slice with the `rank`-th largest cut through the tumour, and the expert's mask."""
    import nrrd

    from medvista_ray.assets import asset_dir

    folder = next(asset_dir("pyradiomics").rglob("lung1_image.nrrd")).parent
    scan, _ = nrrd.read(str(folder / f"{name}_image.nrrd"))
    label = nrrd.read(str(folder / f"{name}_label.nrrd"))[0] > 0
    index = int(np.argsort(-label.sum(axis=(0, 1)))[rank])
    pixels = np.ascontiguousarray(scan[:, :, index].T).astype(np.float32)
    image = MedImage(pixels=pixels, modality="CT", window=window)
    return image, np.ascontiguousarray(label[:, :, index].T)


def jittered(mask: NDArray[np.bool_], seed: int) -> Box:
    box = np.array(window_to_box(mask_window(mask), mask.shape), float)
    side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    x0, y0, x1, y1 = np.clip(box + np.random.default_rng(seed).normal(0, 0.06, 4) * side, 0, 1000).round().astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def segment(tool: SegmentMedical, image: MedImage, box: Box) -> ToolResult:
    return tool.run(tool.Args.model_validate({"bbox": box}), ToolContext({0: image}, {}))


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


@pytest.mark.parametrize(("name", "window"), [("lung1", (-1000, 400)), ("lung2", (-1000, 400)), ("brain1", None)])
def test_masks_of_real_tumours_agree_with_the_experts(
    tool: SegmentMedical, name: str, window: tuple[float, float] | None
) -> None:
    image, expert = tumour(name, window)
    results = [segment(tool, image, jittered(expert, seed)) for seed in range(3)]
    masks = [result.masks[0].pixels for result in results]
    assert np.mean([dice(mask, expert) for mask in masks]) >= 0.8
    assert masks[0].shape == image.size
    assert results[0].data["area_px"] == masks[0].sum()
    assert 0.0 < results[0].data["score"] <= 1.05
    x0, y0, x1, y1 = window_to_box(mask_window(masks[0]), image.size)
    assert results[0].text == f"mask 0: box [{x0}, {y0}, {x1}, {y1}]."


def test_the_fast_arithmetic_does_not_change_what_is_found(tool: SegmentMedical) -> None:
    if tool.network.precision == "float32":
        pytest.skip("this processor has no bf16 instructions: float32 is what runs")
    exact = SegmentMedical(ToolOptions(precision="float32", disk_cache_mib=0))
    exact.setup()
    image, expert = tumour("lung1", (-1000, 400))
    pairs = [(jittered(expert, seed), seed) for seed in range(3)]
    masks = [[segment(one, image, box).masks[0].pixels for box, _ in pairs] for one in (tool, exact)]
    assert np.mean([dice(a, b) for a, b in zip(*masks, strict=True)]) >= 0.98


def test_a_group_on_one_picture_pays_the_encoder_once(tool: SegmentMedical) -> None:
    image, expert = tumour("brain2", None)
    before = tool.cache.num_made
    start = threading.Barrier(6)

    def one(seed: int) -> ToolResult:
        start.wait(10)
        return segment(tool, image, jittered(expert, seed))

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(one, range(6)))
    assert tool.cache.num_made == before + 1
    again = segment(tool, image, jittered(expert, 0))
    assert np.array_equal(again.masks[0].pixels, results[0].masks[0].pixels)
    assert tool.cache.num_made == before + 1


def test_a_box_on_nothing_is_refused(tool: SegmentMedical, monkeypatch: pytest.MonkeyPatch) -> None:
    blank = MedImage(pixels=np.zeros((64, 96), np.float32), modality="CT")
    nothing = (np.zeros((64, 96), bool), 0.1)
    monkeypatch.setattr(tool.network, "decode", lambda *_: nothing)  # the real weights rarely outline nothing
    with pytest.raises(ToolArgumentError, match="no structure found in box"):
        segment(tool, blank, (10, 10, 20, 20))


def test_wide_pictures_keep_their_proportions(tool: SegmentMedical) -> None:
    ys, xs = np.mgrid[:128, :256]
    disc = (ys - 64) ** 2 + (xs - 190) ** 2 < 16**2
    wide = np.where(disc, 200, 20).astype(np.uint8)
    # The same with background below, so that it is square: the network must see the very same.
    square = np.pad(wide, ((0, 128), (0, 0)), constant_values=20)
    box = mask_window(disc)
    masks = []
    for pixels in (wide, square):
        image = MedImage(pixels=pixels, modality="CT")
        masks.append(segment(tool, image, window_to_box(box, image.size)).masks[0].pixels[:128])
    assert dice(*masks) > 0.95  # boxes are rounded to 1/1000 of a side, which differs
    assert dice(masks[0], disc) > 0.9


def test_the_probe_runs_without_the_encoder(tool: SegmentMedical, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded: list[object] = []
    monkeypatch.setattr(tool.network, "encode", lambda *arguments: encoded.append(arguments))
    tool.probe()
    assert encoded == []


def test_weights_that_are_not_there_are_told_of(tmp_path: Path) -> None:
    from medvista_ray.tools.localize.litemedsam import LiteMedSam

    with pytest.raises(AssetError, match="LiteMedSAM code is not in"):
        LiteMedSam(tmp_path)
