"""`medvista-ray tools`: a tool of one's own choice on a file of one's own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.assets.user_files import open_image
from medvista_ray.cli import main
from medvista_ray.tools.catalog import TOOLS
from medvista_ray.types import VolumeImage


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "own.png"
    Image.fromarray(np.arange(10_000, dtype=np.uint8).reshape(100, 100)).save(path)
    return path


def result(out: Path) -> dict[str, object]:
    return json.loads((out / "result.json").read_text())


def test_list_names_every_tool(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", "list"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in TOOLS.names() if f" {name}" not in shown] == []


def test_show_gives_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", "show", "measure"]) == 0
    shown = capsys.readouterr().out
    assert "measure(bbox?: [x0, y0, x1, y1]" in shown
    assert '"additionalProperties": false' in shown


def test_a_returned_picture_is_written(png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["--image", str(png), "--args", '{"bbox": [0, 0, 500, 500]}', "--out", str(out)]
    assert main(["tools", "run", "zoom_in", *arguments]) == 0
    with Image.open(out / "image_1.png") as picture:
        assert picture.size == (224, 224)
    assert result(out)["error"] is None
    assert "image 1 shows this region." in capsys.readouterr().out


def test_a_refused_call_is_told_and_fails(png: Path, tmp_path: Path) -> None:
    arguments = ["--image", str(png), "--args", '{"box": [0, 0, 500, 500]}', "--out", str(tmp_path)]
    assert main(["tools", "run", "zoom_in", *arguments]) == 1
    assert result(tmp_path)["error"] == "E2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["zoom", "--args", "{}"], "did you mean 'zoom_in'"),
        (["zoom_in", "--args", "{bbox"], "is not JSON"),
        (["zoom_in", "--args", "[1]"], "a JSON object needed"),
        (["zoom_in", "--image", "nowhere.dcm"], "No such file"),
        (["zoom_in", "--backend", '{"weights": 3}'], "--backend"),
    ],
)
def test_a_mistake_is_one_line_and_code_2(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tools", "run", *arguments]) == 2
    assert words in capsys.readouterr().err


def test_scans_keep_their_spacing(tmp_path: Path) -> None:
    import nibabel
    import nrrd

    values = np.arange(4 * 6 * 8, dtype=np.int16).reshape(8, 6, 4)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([-0.5, -0.7, 2.0, 1.0])), tmp_path / "a.nii.gz")
    header = {"space": "left-posterior-superior", "space directions": np.diag([0.5, 0.7, 2.0]), "space origin": [0, 0, 0]}
    nrrd.write(str(tmp_path / "b.nrrd"), values, header)
    for name in ("a.nii.gz", "b.nrrd"):
        image = open_image(tmp_path / name)
        assert isinstance(image, VolumeImage)
        assert (image.slices.shape, image.slice_mm, image.spacing_mm) == ((4, 6, 8), 2.0, (0.7, 0.5))


@pytest.mark.assets
def test_a_dicom_keeps_its_unit_and_kind() -> None:
    from medvista_ray.assets import asset_dir

    data = asset_dir("pydicom-data") / "data_store" / "data"
    image = open_image(data / "693_UNCR.dcm")
    assert (image.modality, image.unit, image.pixels.ndim) == ("CT", "HU", 2)
    assert image.spacing_mm is not None


def test_colours_are_those_of_the_file_whatever_its_kind(tmp_path: Path) -> None:
    red = Image.new("RGB", (40, 40), (204, 51, 51))
    for name, mode in (("palette.png", "P"), ("cmyk.tiff", "CMYK")):
        red.convert(mode).save(tmp_path / name)
        out = tmp_path / name.partition(".")[0]
        assert (
            main(
                [
                    "tools",
                    "run",
                    "zoom_in",
                    "--image",
                    str(tmp_path / name),
                    "--args",
                    '{"bbox": [0, 0, 1000, 1000]}',
                    "--out",
                    str(out),
                ]
            )
            == 0
        )
        with Image.open(out / "image_1.png") as picture:
            assert picture.getpixel((5, 5)) == (204, 51, 51)


def test_a_broken_file_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.png", "a.dcm", "a.nii", "a.nrrd"):
        (tmp_path / name).write_bytes(b"no picture")
        assert main(["tools", "run", "zoom_in", "--image", str(tmp_path / name)]) == 2
        assert name in capsys.readouterr().err


def test_help_is_light() -> None:
    code = "import sys, medvista_ray.cli as c\ntry: c.main(['tools', 'run', '--help'])\nexcept SystemExit: pass\n"
    code += "assert not {'torch', 'PIL', 'skimage'} & set(sys.modules), sorted(sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
