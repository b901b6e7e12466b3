"""classify, detect_findings and read_text: what they say comes from the pixels, and what they cannot is told."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFont

from medvista_ray.errors import AssetError, ToolArgumentError
from medvista_ray.tools.base import BackendChoice, Tool, ToolContext, ToolOptions
from medvista_ray.tools.parse import nuclei
from medvista_ray.tools.parse.classify import Classify
from medvista_ray.tools.parse.detect_findings import DetectFindings
from medvista_ray.tools.parse.read_text import ReadText
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage, ToolResult


def call(tool: Tool, image: MedImage, **arguments: object) -> ToolResult:
    return tool.run(tool.Args.model_validate(arguments), ToolContext({0: image}, {}))


def written(*lines: str, side: int = 400) -> MedImage:
    page = Image.new("L", (side, side))
    for number, line in enumerate(lines):
        ImageDraw.Draw(page).text((40, 60 + 120 * number), line, font=ImageFont.load_default(size=24), fill=220)
    return MedImage(pixels=np.asarray(page), modality="CT")


@pytest.fixture(scope="module")
def reader() -> ReadText:
    tool = ReadText(ToolOptions(num_threads=1))
    tool.setup()
    return tool


@pytest.fixture(scope="module")
def classifier() -> Classify:
    tool = Classify()
    tool.setup()
    return tool


def test_the_cache_forgets_what_was_longest_unused() -> None:
    cache: ResultCache[int] = ResultCache(2)
    for key in "abac":
        cache.get(key, lambda: 1)
    assert (len(cache), cache.num_made) == (2, 3)
    cache.get("a", lambda: pytest.fail("a was forgotten"))
    cache.get("b", lambda: 2)
    assert cache.num_made == 4


@pytest.mark.assets
def test_text_is_read_with_its_place_and_once(reader: ReadText) -> None:
    image = written("IM 12/88", "2.5 cm")
    before = reader.cache.num_made
    lines = call(reader, image).data["lines"]
    assert [line["text"].replace(" ", "") for line in lines] == ["IM12/88", "2.5cm"]
    x0, y0, x1, y1 = lines[0]["bbox"]
    assert x0 <= 105
    assert 100 < y0 < y1 < 300
    assert x1 > 300
    call(reader, image)
    assert reader.cache.num_made == before + 1


@pytest.mark.assets
def test_a_region_reads_only_there_and_tells_places_in_the_whole_picture(reader: ReadText) -> None:
    lines = call(reader, written("FIRST", "SECOND"), region=[0, 400, 1000, 650]).data["lines"]
    assert [line["text"] for line in lines] == ["SECOND"]
    assert lines[0]["bbox"][1] >= 400


@pytest.mark.assets
def test_a_picture_without_text_is_a_result(reader: ReadText) -> None:
    assert call(reader, MedImage(pixels=np.zeros((1, 1), np.uint8), modality="CT")).text == "no text found."
    reader.probe()


def test_weights_that_are_no_reader_are_told_of(tmp_path: Path) -> None:
    tool = ReadText(ToolOptions(backends={"read_text": BackendChoice(name="pp_ocr", weights=tmp_path)}))
    with pytest.raises(AssetError, match=r"one file \*det\*.onnx needed, found 0"):
        tool.setup()


@pytest.mark.assets
@pytest.mark.parametrize(("plate", "kind"), [("he-tile", "microscopy"), ("ct-pancreas", "CT"), ("us-b", "ultrasound")])
def test_kinds_of_unseen_subjects_are_told_from_the_pixels_alone(classifier: Classify, plate: str, kind: str) -> None:
    from medvista_ray.assets.volumes import open_plate

    found = open_plate(plate)
    lie = MedImage(pixels=found.pixels, modality="MRI", source="brain2", window=(-160.0, 240.0) if kind == "CT" else None)
    ranked = call(classifier, lie).data["ranked"]
    assert ranked[0]["label"] == kind
    assert sum(item["prob"] for item in ranked) == pytest.approx(1.0, abs=0.01)
    truth = dataclasses.replace(lie, modality=kind, source="")
    assert call(classifier, truth).data["ranked"] == ranked


@pytest.mark.assets
def test_candidates_narrow_the_answer_and_unknown_ones_are_refused(classifier: Classify) -> None:
    image = MedImage(pixels=np.arange(4096, dtype=np.uint8).reshape(64, 64), modality="")
    ranked = call(classifier, image, candidates=["radiograph", "MRI"]).data["ranked"]
    assert {item["label"] for item in ranked} == {"radiograph", "MRI"}
    with pytest.raises(ToolArgumentError, match=r"does not know 'axial'; it knows: CT, MRI"):
        call(classifier, image, preset="plane")


def discs(number: int, side: int = 256) -> MedImage:
    ys, xs = np.mgrid[:side, :side]
    per_row = side // 32
    centres = [(16 + 32 * (i // per_row), 16 + 32 * (i % per_row)) for i in range(number)]
    bright = np.any([(ys - y) ** 2 + (xs - x) ** 2 < 64 for y, x in centres], axis=0)
    return MedImage(pixels=np.where(bright, 200, 10).astype(np.uint8), modality="CT")


@pytest.fixture(scope="module")
def finder() -> DetectFindings:
    tool = DetectFindings()
    tool.setup()
    return tool


@pytest.mark.parametrize("number", [20, 37])
def test_bright_discs_are_counted(finder: DetectFindings, number: int) -> None:
    (found,) = call(finder, discs(number)).data["findings"]
    assert (found["finding"], found["value"], found["unit"]) == ("nuclei (fluorescent)", number, "count")


def test_a_kind_without_a_detector_is_told_as_such(finder: DetectFindings) -> None:
    ramp = MedImage(pixels=np.arange(65536, dtype=np.int32).reshape(256, 256), modality="CT")
    result = call(finder, ramp)
    assert result.data["findings"] == []
    assert result.data["in_domain"] is False
    assert "no detector for this kind of picture" in result.text


def test_tissue_shares_follow_the_densities(finder: DetectFindings) -> None:
    pixels = np.full((200, 200), -1000, np.int16)
    pixels[20:180, 20:180] = 40
    pixels[40:120, 40:80] = -800
    pixels[40:60, 120:160] = 500
    found = {f["finding"]: f["value"] for f in call(finder, MedImage(pixels=pixels, modality="", unit="HU")).data["findings"]}
    assert found["aerated lung"] == pytest.approx(12.5, abs=0.5)
    assert found["bone or contrast"] == pytest.approx(3.1, abs=0.3)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (3, 3)])
@pytest.mark.parametrize("unit", ["HU", "intensity"])
def test_the_smallest_pictures_are_answered(finder: DetectFindings, shape: tuple[int, int], unit: str) -> None:
    assert call(finder, MedImage(pixels=np.zeros(shape, np.int16), modality="", unit=unit)).text


def test_a_coloured_screen_is_no_slide() -> None:
    screen = np.full((100, 100, 3), 30, np.uint8)
    screen[:6] = (250, 220, 0)
    assert nuclei.stain(screen) is None
