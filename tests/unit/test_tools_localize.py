"""ground, segment_prompt and segment_text with their classical defaults: drawn structures, and real pictures with truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import BackendChoice, Tool, ToolContext, ToolOptions
from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.tools.localize.classical import ClassicalGrounder, known_name
from medvista_ray.tools.localize.ground import Ground
from medvista_ray.tools.localize.segment_prompt import SegmentPrompt
from medvista_ray.tools.localize.segment_text import SegmentText
from medvista_ray.types import MedImage, ToolResult


def run(tool: type[Tool], image: MedImage, **arguments: Any) -> ToolResult:
    made = tool()
    made.setup()
    return made.run(tool.Args.model_validate(arguments), ToolContext({0: image}, {}))


def disc(size: tuple[int, int], center: tuple[int, int], radius: int) -> NDArray[np.bool_]:
    ys, xs = np.mgrid[: size[0], : size[1]]
    return (ys - center[0]) ** 2 + (xs - center[1]) ** 2 <= radius**2


def dice(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def box_of(mask: NDArray[np.bool_]) -> list[int]:
    return list(window_to_box(mask_window(mask), (mask.shape[0], mask.shape[1])))


def iou(a: list[int], b: list[int]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def thorax() -> tuple[MedImage, list[NDArray[np.bool_]]]:
    """A drawn CT slice: air, body of 40 HU, two lungs of -800 HU, a spine of 700 HU; and the lungs' masks."""
    size = (256, 256)
    rng = np.random.default_rng(0)
    values = np.full(size, -1000.0)
    ys, xs = np.mgrid[:256, :256]
    values[((ys - 128) / 100) ** 2 + ((xs - 128) / 115) ** 2 <= 1] = 40
    lungs = [((ys - 120) / 60) ** 2 + ((xs - x) / 38) ** 2 <= 1 for x in (75, 181)]
    for lung in lungs:
        values[lung] = -800
    values[disc(size, (190, 128), 15)] = 700
    noisy = (values + rng.normal(0, 15, size)).astype(np.int16)
    return MedImage(noisy, "CT", (1.4, 1.4), "HU", (-1000.0, 400.0)), lungs


def test_lungs_bone_and_body_are_found_by_hounsfield_units() -> None:
    image, lungs = thorax()
    result = run(Ground, image, phrase="the lungs")
    assert all(iou(*pair) > 0.9 for pair in zip(sorted(result.data["boxes"]), map(box_of, lungs), strict=True))
    assert result.data["phrases"] == ["lung", "lung"]
    assert min(result.data["scores"]) > 0.9
    assert result.text.startswith("2 found for 'the lungs': [")
    (bone,) = run(Ground, image, phrase="bones").data["boxes"]
    assert iou(bone, box_of(disc(image.size, (190, 128), 15))) > 0.85
    (body,) = run(Ground, image, phrase="body outline").data["boxes"]
    assert body == pytest.approx([50, 109, 950, 895], abs=12)


def test_gas_that_is_no_lung_and_vessels_that_are_no_bone_are_left_out() -> None:
    image, lungs = thorax()
    pixels = image.pixels.copy()
    pixels[lungs[0]] = -990
    pixels[disc(image.size, (190, 128), 15)] = 350
    other = MedImage(pixels, "CT", None, "HU", (-1000.0, 400.0))
    assert run(Ground, other, phrase="lungs").data["num_detections"] == 1
    assert run(Ground, other, phrase="bone").text == "no 'bone' found."


@pytest.mark.parametrize("phrase", ["spleen", "left lung", "no lungs", "the tumour", "pneumonia", "lungs or bone"])
def test_what_computation_cannot_find_is_said_and_never_guessed(phrase: str) -> None:
    with pytest.raises(ToolArgumentError, match=r"cannot find .*; can find: bright structure, dark structure, body, lung"):
        run(Ground, thorax()[0], phrase=phrase)


def test_a_thing_out_of_place_is_refused_with_the_reason() -> None:
    mri = MedImage(np.random.default_rng(0).normal(size=(32, 32)), "MRI", unit="signal")
    with pytest.raises(ToolArgumentError, match="Hounsfield units; this picture is in signal"):
        run(Ground, mri, phrase="lungs")
    with pytest.raises(ToolArgumentError, match="seen in microscopy; this picture is MRI"):
        run(Ground, mri, phrase="nuclei")


def test_words_for_one_thing_are_one_thing() -> None:
    assert known_name(" The  Brightest Lesion. ") == known_name("bright regions") == "bright structure"
    assert known_name("hypodense area") == "dark structure"
    assert known_name("all cell nuclei") == "nucleus"


def test_bright_and_dark_structures_are_found_and_thresholds_count() -> None:
    pixels = np.full((100, 200), 100.0)
    pixels[disc((100, 200), (50, 50), 15)] = 220
    pixels[disc((100, 200), (50, 150), 15)] = 10
    image = MedImage(pixels, "ultrasound", window=(0.0, 255.0))
    for phrase, column in (("bright spot", 50), ("dark spot", 150)):
        (box,) = run(Ground, image, phrase=phrase).data["boxes"]
        assert iou(box, box_of(disc((100, 200), (50, column), 15))) > 0.7
    flat = MedImage(np.full((40, 40), 7.0), "MRI")
    assert run(Ground, flat, phrase="bright structure").data["boxes"] == []
    assert run(Ground, flat, phrase="dark structure").data["boxes"] == []


def test_a_map_is_computed_once_per_picture_and_phrase() -> None:
    grounder = ClassicalGrounder(BackendChoice(name="classical"), ToolOptions())
    image, _ = thorax()
    for phrase in ("lungs", "lung", "bone", "lungs"):
        grounder.find(image, phrase, 0.35, 0.25)
    assert grounder.cache.num_made == 2


def with_words(words: str, at: tuple[int, int]) -> MedImage:
    rng = np.random.default_rng(0)
    picture = Image.fromarray(np.clip(rng.normal(60, 12, (300, 400)), 0, 255).astype(np.uint8))
    ImageDraw.Draw(picture).text(at, words, fill=255, font=ImageFont.load_default(20))
    return MedImage(np.asarray(picture), "ultrasound", window=(0.0, 255.0))


def test_burned_in_text_is_outlined_and_its_absence_is_a_result() -> None:
    result = run(SegmentText, with_words("LIVER 12.5 cm", (40, 200)))
    boxes = [region["bbox"] for region in result.data["regions"]]
    assert len(result.masks) == len(boxes) > 0
    assert all(x0 >= 90 and x1 <= 480 and y0 >= 640 and y1 <= 780 for x0, y0, x1, y1 in boxes)
    assert max(x1 for _, _, x1, _ in boxes) - min(x0 for x0, *_ in boxes) > 250
    assert result.text.split(". ")[1].startswith("mask 0: box [")
    absent = run(SegmentText, with_words("", (0, 0)))
    assert (absent.text, absent.data["absent"], absent.masks) == ("'text' is absent.", True, ())


def test_masks_are_numbered_bounded_and_shown_on_demand() -> None:
    image, lungs = thorax()
    result = run(SegmentText, image, target="lungs", overlay=True)
    assert all(max(dice(mask.pixels, lung) for mask in result.masks) > 0.95 for lung in lungs)
    assert result.text.endswith("image 1 shows them.")
    assert (result.images[0].pixels == (255, 64, 0)).all(axis=2).any()
    assert len(run(SegmentText, image, target="lungs", max_masks=1).masks) == 1


def blob() -> tuple[MedImage, NDArray[np.bool_]]:
    size = (150, 200)
    truth = disc(size, (70, 120), 25)
    pixels = np.where(truth, 130.0, 80.0) + np.random.default_rng(0).normal(0, 8, size)
    return MedImage(pixels, "MRI", window=(0.0, 255.0)), truth


def test_boxes_points_and_phrases_outline_the_same_thing() -> None:
    image, truth = blob()
    box = box_of(truth)
    for prompt in (
        {"bbox": [box[0] - 20, box[1] - 15, box[2] + 15, box[3] + 20]},
        {"points": [[610, 480]]},
        {"phrase": "bright mass"},
    ):
        result = run(SegmentPrompt, image, **prompt)
        assert dice(result.masks[0].pixels, truth) > 0.9, prompt
        assert result.data["centroid"] == pytest.approx([602, 470], abs=15)
    assert result.text.startswith("mask 0: box [")


def test_a_mask_stays_in_its_box_and_off_points_outside() -> None:
    image, truth = blob()
    half = [500, 200, 600, 750]
    box = run(SegmentPrompt, image, bbox=half).data["bbox"]
    assert all(low <= value for low, value in zip(half[:2], box[:2], strict=True))
    assert all(value <= high for value, high in zip(box[2:], half[2:], strict=True))
    two = run(SegmentPrompt, image, points=[[600, 470], [680, 470]], labels=[1, 0]).masks[0].pixels
    assert not two[70, 136]
    assert dice(two, truth) < dice(run(SegmentPrompt, image, points=[[600, 470]]).masks[0].pixels, truth)


@pytest.mark.assets
def test_real_tumours_and_nuclei_are_outlined_from_boxes_without_a_model() -> None:
    from medvista_ray.assets.volumes import open_plate, open_volume

    scores: list[float] = []
    for name, window in (("lung1", (-1000.0, 400.0)), ("lung2", (-1000.0, 400.0)), ("brain1", None)):
        scan = open_volume(name)
        assert scan.labels is not None
        index = int(np.argmax((scan.labels > 0).sum(axis=(1, 2))))
        truth = np.asarray(scan.labels[index]) > 0
        image = MedImage(np.asarray(scan.values[index]), scan.modality, None, scan.unit, window)
        scores.append(dice(run(SegmentPrompt, image, bbox=box_of(truth)).masks[0].pixels, truth))
    assert min(scores) > 0.75, scores
    plate = open_plate("nuclei2d")
    assert plate.labels is not None
    image = MedImage(np.asarray(plate.pixels), plate.modality)
    found = run(Ground, image, phrase="nuclei").data["boxes"]
    real = [box_of(plate.labels == number) for number in np.unique(plate.labels)[1:]]
    num_met = sum(any(iou(box, other) > 0.5 for other in found) for box in real)
    assert num_met > 0.5 * len(real)
    assert num_met > 0.7 * len(found)
