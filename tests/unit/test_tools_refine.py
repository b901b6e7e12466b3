"""enhance, super_resolve, compare_regions, and scans in zoom_in: known inputs, known outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import load_tools
from medvista_ray.tools.refine.compare_regions import CompareRegions
from medvista_ray.tools.refine.enhance import Enhance
from medvista_ray.tools.refine.resampling import resample
from medvista_ray.tools.refine.super_resolve import SuperResolve
from medvista_ray.tools.refine.zoom_in import ZoomIn
from medvista_ray.tools.validation import Refusal, parse_arguments
from medvista_ray.types import MedImage, ToolResult, VolumeImage


def run(tool: type[Tool], *images: MedImage, **arguments: Any) -> ToolResult:
    made = tool()
    made.setup()
    return made.run(tool.Args.model_validate(arguments), ToolContext(dict(enumerate(images)), {}))


def scan() -> VolumeImage:
    """Slice k holds 100 k HU."""
    values = np.repeat(np.arange(10, dtype=np.int16) * 100, 20 * 30).reshape(10, 20, 30)
    return VolumeImage.of(values, "CT", (3.0, 0.5, 0.5), unit="HU")


def ct() -> MedImage:
    pixels = np.linspace(-1000, 1000, 40 * 60).reshape(40, 60).astype(np.int16)
    return MedImage(pixels, "CT", (0.8, 0.5), "HU", (-160.0, 240.0), "x")


def test_a_scan_is_a_picture_to_every_tool_and_its_slices_are_asked_for_by_number() -> None:
    assert (run(ZoomIn, scan(), bbox=[0, 0, 500, 500]).images[0].pixels == 500).all()
    assert (run(ZoomIn, scan(), bbox=[0, 0, 500, 500], slice_index=7).images[0].pixels == 700).all()
    shown = run(Enhance, scan(), slice_index=2, window="lung")
    assert (shown.images[0].pixels == 200).all()
    assert shown.images[0].window == (-1350.0, 150.0)
    assert not isinstance(shown.images[0], VolumeImage)
    assert shown.text == "image 1 shows image 0, slice 2, lung window."
    assert scan().key == scan().key != VolumeImage.of(scan().slices + 1, "CT", unit="HU").key


def test_slices_planes_and_windows_that_do_not_exist_are_refused_in_words() -> None:
    frames = VolumeImage.of(np.zeros((4, 8, 8, 3), np.uint8), "ultrasound")
    for image, arguments, words in (
        (scan(), {"slice_index": 10}, "axial slices 0..9, not 10"),
        (scan(), {"slice_index": 25, "params": {"plane": "coronal"}}, "coronal slices 0..19"),
        (ct(), {"slice_index": 0}, "single picture"),
        (frames, {"params": {"plane": "sagittal"}}, "stack of frames"),
        (MedImage(np.ones((9, 9)), "MRI", unit="signal"), {"window": "brain"}, "in HU, the picture in signal"),
        (frames, {"params": {"low": 0, "high": 9}}, "no window"),
    ):
        with pytest.raises(ToolArgumentError, match=words):
            run(Enhance, image, **arguments)


def test_zoom_ins_signature_does_not_grow_and_prompts_stay_short() -> None:
    names = ("zoom_in", "super_resolve", "enhance", "compare_regions", "ground", "segment_prompt", "segment_text")
    signatures = [spec.signature() for spec in load_tools(names)]
    assert signatures[0] == "zoom_in(image_index: int = 0, bbox: [x0, y0, x1, y1], scale?: float): crop and enlarge a region."
    assert "params?" in signatures[2]
    assert "points?: [[x, y], ...]" in signatures[5]
    assert all(len(signature) < 200 for signature in signatures)


@pytest.mark.parametrize("op", ["window", "denoise", "rotate", "flip"])
def test_views_keep_native_values_and_grey_scale_changes_say_that_they_do_not(op: str) -> None:
    view = run(Enhance, ct(), op=op).images[0]
    assert (view.unit, view.pixels.dtype) == ("HU", np.int16)
    assert abs(float(view.pixels.mean()) - float(ct().pixels.mean())) < 5
    for changed in ("clahe", "gamma", "sharpen", "invert"):
        picture = run(Enhance, ct(), op=changed).images[0]
        assert (picture.unit, picture.pixels.dtype, picture.spacing_mm) == ("intensity", np.uint8, (0.8, 0.5))


def test_operations_do_what_their_names_say() -> None:
    image = ct()
    turned = run(Enhance, image, op="rotate", params={"angle": 90}).images[0]
    assert np.array_equal(turned.pixels, np.rot90(image.pixels, -1))
    assert (turned.size, turned.spacing_mm) == ((60, 40), (0.5, 0.8))
    assert np.array_equal(run(Enhance, image, op="flip").images[0].pixels, image.pixels[:, ::-1])
    assert np.array_equal(run(Enhance, image, op="invert").images[0].display(), 255 - image.display())
    assert run(Enhance, image, op="gamma", params={"gamma": 0.5}).images[0].display().mean() > image.display().mean()
    assert run(Enhance, image, params={"low": -50, "high": 150}).images[0].window == (-50.0, 150.0)
    noisy = MedImage(np.random.default_rng(0).normal(50, 20, (64, 64)), "CT", unit="HU")
    assert run(Enhance, noisy, op="denoise", params={"radius": 2}).images[0].pixels.std() < 6
    dim = MedImage(np.tile(np.arange(100, 116, dtype=np.uint8), (64, 4)), "X-ray", window=(0.0, 255.0))
    assert np.ptp(run(Enhance, dim, op="clahe").images[0].display()) > 2 * np.ptp(dim.display())


def test_parameters_of_another_operation_are_refused_by_name() -> None:
    for arguments, words in (
        ({"op": "gamma", "params": {"angle": 90}}, "params of gamma are gamma, plane; found angle"),
        ({"params": {"low": 3}}, "low and high go together"),
        ({"params": {"low": float("nan"), "high": 1}}, "finite"),
        ({"params": {"contrast": 1}}, "params[contrast]"),
        ({"op": "gamma", "params": {"gamma": 99}}, "params[gamma] = 99"),
    ):
        refusal = parse_arguments(Enhance.Args, arguments)
        assert isinstance(refusal, Refusal)
        assert words in refusal.message


def smooth_texture() -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    return (gaussian_filter(np.random.default_rng(0).normal(size=(128, 160)), 1.6) * 1000).astype(np.int16)


@pytest.mark.parametrize("factor", [2, 4])
def test_super_resolution_agrees_with_its_source_and_is_nearer_the_truth_than_interpolation(factor: int) -> None:
    truth = smooth_texture()
    height, width = truth.shape
    coarse = truth.reshape(height // factor, factor, width // factor, factor).mean((1, 3)).round().astype(np.int16)
    image = MedImage(coarse, "MRI", (1.0, 1.0), "signal")
    picture = run(SuperResolve, image, factor=factor).images[0]
    assert (picture.size, picture.spacing_mm, picture.pixels.dtype) == (truth.shape, (1 / factor, 1 / factor), np.int16)
    again = picture.pixels.reshape(height // factor, factor, width // factor, factor).mean((1, 3))
    assert np.abs(again - coarse).mean() < 0.05 * np.ptp(coarse) / 2

    def error(pixels: np.ndarray) -> float:
        return float(((pixels - truth.astype(float)) ** 2).mean())

    assert error(picture.pixels) < error(resample(coarse, height, width, Image.Resampling.BICUBIC))


def test_super_resolution_of_too_large_a_region_asks_for_a_smaller_one() -> None:
    with pytest.raises(ToolArgumentError, match="factor 4 takes up to 256: name a smaller bbox"):
        run(SuperResolve, MedImage(np.zeros((400, 300)), "CT"), factor=4)


def test_regions_are_compared_in_native_values_across_pictures() -> None:
    other = MedImage(np.full((30, 30), 80, np.int16), "CT", unit="HU", window=(-160.0, 240.0))
    items = [{"bbox": [0, 0, 1000, 100]}, {"image_index": 1, "label": "cyst"}]
    result = run(CompareRegions, ct(), other, items=items)
    assert result.text.startswith("image 2 shows A (mean -9")
    assert result.text.endswith("HU), cyst (mean 80 HU, higher).")
    assert result.data["regions"][1]["mean"] == 80.0
    picture = result.images[0].pixels
    assert picture.shape[2] == 3
    assert (picture[100, -30] == round(240 / 400 * 255)).all()  # the second region, in its own window


def test_a_comparison_sees_every_picture_that_its_items_name_and_no_other() -> None:
    args = CompareRegions.Args.model_validate({"items": [{"image_index": 2}, {"image_index": 0}]})
    needed = ToolContext({index: ct() for index in range(4)}, {}).needed_by(args)
    assert set(needed.images) == {0, 2}
    with pytest.raises(ToolArgumentError, match="no image 9"):
        ToolContext({0: ct()}, {}).needed_by(CompareRegions.Args.model_validate({"items": [{}, {"image_index": 9}]}))


def test_probes_pass_and_notice_a_broken_tool(monkeypatch: pytest.MonkeyPatch) -> None:
    for spec in (Enhance, SuperResolve, CompareRegions):
        tool = spec()
        tool.setup()
        tool.probe()
    monkeypatch.setattr(Enhance, "run", lambda *_: ToolResult("x", (MedImage(np.zeros((16, 16)), "x"),)))
    with pytest.raises(RuntimeError, match="enhance inverted"):
        Enhance().probe()
