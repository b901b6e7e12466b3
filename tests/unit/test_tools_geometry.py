"""zoom_in and measure on synthetic pictures with known answers."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.geometry import box_to_window, grow, mask_window, window_to_box
from medvista_ray.tools.parse.measure import Measure
from medvista_ray.tools.refine.zoom_in import ZoomIn
from medvista_ray.types import Mask, MedImage, ToolResult


def ellipse(size: tuple[int, int], center: tuple[float, float], axes: tuple[float, float], angle: float) -> NDArray[np.bool_]:
    """Full axes in pixels along (y, x) before a turn by `angle` radians; `center` in pixel corners (y, x)."""
    ys, xs = np.mgrid[: size[0], : size[1]] + 0.5
    dy, dx = ys - center[0], xs - center[1]
    along, across = dy * np.cos(angle) + dx * np.sin(angle), -dy * np.sin(angle) + dx * np.cos(angle)
    return (along / (axes[0] / 2)) ** 2 + (across / (axes[1] / 2)) ** 2 <= 1


def measure(image: MedImage, masks: list[NDArray[np.bool_]] | None = None, **arguments: object) -> ToolResult:
    context = ToolContext({0: image}, {i: Mask(0, mask) for i, mask in enumerate(masks or [])})
    return Measure().run(Measure.Args.model_validate(arguments), context)


def zoom(image: MedImage, **arguments: object) -> MedImage:
    return ZoomIn().run(ZoomIn.Args.model_validate(arguments), ToolContext({0: image}, {})).images[0]


def flat(size: tuple[int, int], spacing: tuple[float, float] | None, value: float = 50.0) -> MedImage:
    return MedImage(pixels=np.full(size, value, np.float32), modality="CT", spacing_mm=spacing, unit="HU")


@pytest.mark.parametrize("angle", [0.0, 0.4, 1.1, np.pi / 2])
def test_axes_of_a_turned_ellipse_are_its_axes(angle: float) -> None:
    mask = ellipse((200, 200), (97.0, 103.0), (120.0, 60.0), angle)
    data = measure(flat((200, 200), (0.5, 0.5)), [mask], mask_index=0).data
    assert data["long_axis"] == pytest.approx(60.0, abs=0.6)
    assert data["short_axis"] == pytest.approx(30.0, abs=0.6)
    assert data["area"] == pytest.approx(np.pi * 30 * 15, rel=0.01)
    assert data["center"] == pytest.approx([515, 485], abs=2)


def test_axes_are_measured_in_millimetres_when_rows_and_columns_differ() -> None:
    # A disc of 40 mm on a grid of 2 mm rows and 0.5 mm columns is 20 rows high and 80 columns wide.
    mask = ellipse((60, 200), (30.0, 100.0), (20.0, 80.0), 0.0)
    data = measure(flat((60, 200), (2.0, 0.5)), [mask], mask_index=0).data
    assert data["long_axis"] == pytest.approx(40.0, abs=2.0)  # one row
    assert data["short_axis"] == pytest.approx(40.0, abs=2.0)
    assert (data["width"], data["height"]) == pytest.approx((40.0, 40.0), rel=0.03)


def test_an_upright_rectangle_has_its_sides_as_width_and_height() -> None:
    mask = np.zeros((50, 50), bool)
    mask[10:20, 5:35] = True
    data = measure(flat((50, 50), (1.0, 1.0)), [mask], mask_index=0).data
    assert (data["width"], data["height"], data["area"]) == (30.0, 10.0, 300.0)
    assert data["long_axis"] == pytest.approx(np.hypot(30, 9), abs=0.01)
    assert data["center"] == [400, 300]


def test_the_text_rounds_and_the_unit_follows_the_size() -> None:
    image = flat((100, 100), (1.0, 1.0), 71.4)
    text = measure(image, bbox=[100, 200, 310, 390]).text
    assert text == "width 21 mm, height 19 mm, area 4.0 cm2, mean 71 HU, center [205, 295]"
    assert "area 6.0 mm2" in measure(image, bbox=[0, 0, 20, 30]).text
    assert "height 2.0 mm" in measure(image, bbox=[0, 0, 10, 20]).text
    assert "area 399 px2" in measure(flat((100, 100), None), bbox=[100, 200, 310, 390]).text


def test_a_mask_is_told_with_its_axes_and_a_box_without() -> None:
    image, mask = flat((50, 50), (1.0, 1.0)), np.zeros((50, 50), bool)
    mask[10:20, 5:35] = True
    told = measure(image, [mask], mask_index=0).text
    assert told.startswith("long axis 31 mm, short axis 18 mm, width 30 mm, height 10 mm, area 3.0 cm2"), told
    assert "axis" not in measure(image, bbox=[100, 200, 700, 400]).text


def test_a_reference_is_compared_by_mean_and_by_area() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.normal(40.0, 5.0, (100, 100)).astype(np.float32)
    pixels[:50] += 30.0
    image = MedImage(pixels=pixels, modality="CT", unit="HU", spacing_mm=(1.0, 1.0))
    up, down, small = [0, 0, 1000, 500], [0, 500, 1000, 1000], [0, 500, 500, 1000]
    brighter = measure(image, bbox=up, reference_bbox=down)
    assert brighter.text.endswith("reference mean 40 HU: region is higher; region is the same size")
    assert measure(image, bbox=small, reference_bbox=up).text.endswith("region is lower; region is smaller")
    assert measure(image, bbox=down, reference_bbox=small).text.endswith("region is equal; region is larger")
    assert brighter.data["reference"]["mean"] == pytest.approx(float(pixels[50:].mean()), rel=1e-5)


def test_an_empty_mask_and_units_that_do_not_compare_are_refused() -> None:
    with pytest.raises(ToolArgumentError, match="empty"):
        measure(flat((9, 9), None), [np.zeros((9, 9), bool)], mask_index=0)
    other = MedImage(pixels=np.ones((9, 9), np.float32), modality="MRI", unit="signal")
    context = ToolContext({0: flat((9, 9), None), 1: other}, {0: Mask(1, np.ones((9, 9), bool))})
    args = Measure.Args.model_validate({"bbox": [0, 0, 1000, 1000], "reference_mask_index": 0})
    with pytest.raises(ToolArgumentError, match="signal"):
        Measure().run(args, context)


@pytest.mark.parametrize("size", [(512, 512), (45, 120), (1000, 333)])
def test_boxes_and_windows_agree(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        x0, y0 = rng.integers(0, 990, 2)
        box = int(x0), int(y0), int(rng.integers(x0 + 1, 1001)), int(rng.integers(y0 + 1, 1001))
        window = box_to_window(box, size)
        back = window_to_box(window, size)
        assert 0 <= window.y0 < window.y1 <= size[0]
        assert 0 <= window.x0 < window.x1 <= size[1]
        assert back[0] <= box[0]
        assert back[1] <= box[1]
        assert back[2] >= box[2]
        assert back[3] >= box[3]


def test_a_window_grows_about_its_centre_and_stays_inside() -> None:
    assert grow(10, 12, 8, 100) == (7, 15)
    assert grow(0, 2, 8, 100) == (0, 8)
    assert grow(98, 100, 8, 100) == (92, 100)
    assert grow(1, 2, 8, 5) == (0, 5)


def test_zoom_keeps_native_values_window_unit_and_millimetres() -> None:
    pixels = np.zeros((256, 256), np.int16)
    pixels[64:128, 64:128] = 900
    image = MedImage(pixels=pixels, modality="CT", spacing_mm=(0.8, 0.5), unit="HU", window=(-100.0, 1000.0), source="x")
    crop = zoom(image, bbox=[250, 250, 500, 500])
    assert crop.size == (224, 224)
    assert crop.pixels.dtype == np.int16
    assert (crop.pixels == 900).all()
    assert (crop.window, crop.unit, crop.source) == (image.window, "HU", "x")
    assert crop.spacing_mm == pytest.approx((0.8 * 64 / 224, 0.5 * 64 / 224))
    before = measure(image, bbox=[250, 250, 500, 500]).data
    after = measure(crop, bbox=[0, 0, 1000, 1000]).data
    assert (after["width"], after["height"], after["mean"]) == pytest.approx((before["width"], before["height"], before["mean"]))


def test_zoom_of_a_picture_without_a_window_keeps_the_look_of_the_whole() -> None:
    pixels = np.linspace(0, 1000, 64 * 64, dtype=np.float32).reshape(64, 64)
    crop = zoom(MedImage(pixels=pixels, modality="MRI"), bbox=[0, 0, 500, 500])
    assert crop.window == (0.0, 1000.0)
    assert int(crop.display().max()) < 140


def test_zoom_grows_a_tiny_box_and_bounds_a_long_strip() -> None:
    image = flat((512, 512), (1.0, 1.0))
    result = ZoomIn().run(ZoomIn.Args.model_validate({"bbox": [500, 500, 501, 501]}), ToolContext({0: image}, {}))
    assert result.data["bbox"] == [492, 492, 508, 508]
    assert result.text == "image 1 shows this region."
    strip = zoom(image, bbox=[0, 500, 1000, 501])
    assert strip.size == (224, 896)
    assert max(zoom(flat((3000, 4000), None), bbox=[0, 0, 1000, 1000]).size) == 1024
    assert zoom(image, bbox=[0, 0, 500, 500], scale=2.0).size == (512, 512)


def test_zoom_keeps_colours() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[..., 1] = 200
    crop = zoom(MedImage(pixels=pixels, modality="histology"), bbox=[0, 0, 500, 500])
    assert crop.pixels.shape == (224, 224, 3)
    assert (crop.pixels == [0, 200, 0]).all()


def test_the_window_of_a_mask_is_its_bounding_rectangle() -> None:
    mask = np.zeros((10, 12), bool)
    mask[2, 3] = mask[5, 9] = True
    assert mask_window(mask) == (2, 3, 6, 10)


def test_probes_pass_on_whole_tools_and_notice_a_broken_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ZoomIn().probe()
    Measure().probe()
    monkeypatch.setattr(Measure, "run", lambda *_: ToolResult(text="", data={"area": 1.0}))
    with pytest.raises(RuntimeError, match="measure gave"):
        Measure().probe()
