"""The wheel: built without a network, it holds exactly what pyproject.toml lists, and its commands answer at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("medvista_ray", "trainers", "actors", "serve_apps")
HEAVY = {"torch", "vllm", "ray", "transformers", "skimage"}
HELP_LIMIT_S = 1.0


@pytest.fixture(scope="module")
def project(root: Path) -> dict[str, Any]:
    """pyproject.toml."""
    return tomllib.loads((root / "pyproject.toml").read_text())


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of a copy of the tree, so that the tree stays clean."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(root / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, tree)
    (tree / "stray_folder").mkdir()  # automatic discovery would take it
    (tree / "stray_folder" / "__init__.py").touch()
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--no-index",
        ".",
        "-w",
        out,
    ]
    result = subprocess.run([*map(str, command)], cwd=tree, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the wheel's files as an installation would."""
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def run_installed(installed: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """Run python on the installed copy, from outside the tree."""
    env = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run([sys.executable, *args], cwd=installed.parent, env=env, capture_output=True, text=True, check=False)


def test_the_listed_packages_are_the_folders_that_exist(root: Path, project: dict[str, Any]) -> None:
    folders = {path.parent for name in PACKAGES for path in (root / name).rglob("*.py")}
    existing = sorted(folder.relative_to(root).as_posix().replace("/", ".") for folder in folders)
    assert sorted(project["tool"]["setuptools"]["packages"]) == existing
    assert [str(folder) for folder in folders if not (folder / "__init__.py").exists()] == []


def test_the_wheel_has_the_four_top_level_names_and_no_other(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name.partition("/")[0] for name in archive.namelist()}
    assert {name for name in names if not name.endswith(".dist-info")} == set(PACKAGES)


def test_the_wheel_carries_every_data_file_and_the_licence(root: Path, wheel: Path) -> None:
    tiny = root / "medvista_ray" / "models" / "tiny"
    expected = {p.relative_to(root).as_posix() for p in [*tiny.glob("*"), root / "medvista_ray" / "py.typed"] if p.is_file()}
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert expected <= names
    assert {name.rpartition("/")[2] for name in names if "/licenses/" in name} == {"LICENSE", "NOTICE"}


def test_the_wheel_names_its_commands_and_the_engine_plug_in(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry_points,) = (name for name in archive.namelist() if name.endswith("entry_points.txt"))
        text = archive.read(entry_points).decode()
    assert "medvista-ray = medvista_ray.cli:main" in text
    assert "[vllm.general_plugins]\nmedvista_shm = medvista_ray.weights.vllm_plugin:register" in text


@pytest.mark.parametrize("module", ["medvista_ray.train", "medvista_ray.evaluate", "medvista_ray.cli"])
def test_help_from_the_installed_wheel_is_quick_and_imports_nothing_heavy(installed: Path, module: str) -> None:
    result = run_installed(installed, "-X", "importtime", "-m", module, "--help")
    assert result.returncode == 0, result.stderr
    assert "usage:" in result.stdout
    imported = {line.rpartition("|")[2].strip() for line in result.stderr.splitlines() if line.startswith("import time:")}
    assert "medvista_ray.command_line" in imported
    assert {name.partition(".")[0] for name in imported} & HEAVY == set()
    assert min(_seconds_of_help(installed, module) for _ in range(3)) < HELP_LIMIT_S


def _seconds_of_help(installed: Path, module: str) -> float:
    start = time.perf_counter()
    run_installed(installed, "-m", module, "--help")
    return time.perf_counter() - start


def test_the_installed_copy_is_what_ran(installed: Path) -> None:
    result = run_installed(installed, "-c", "import medvista_ray.train as m; print(m.__file__)")
    assert result.stdout.strip() == str(installed / "medvista_ray" / "train.py")


def test_dependencies_are_pinned(project: dict[str, Any]) -> None:
    extras = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    others = [line for line in extras if not line.startswith("medvista-ray[")]  # an extra within an extra
    loose = [line for line in [*project["project"]["dependencies"], *others] if "==" not in line and "<" not in line]
    assert loose == []


def test_both_engines_are_one_version(project: dict[str, Any]) -> None:
    extras = project["project"]["optional-dependencies"]
    assert [line.partition("==")[2] for line in extras["cpu"]] == [line.partition("==")[2] for line in extras["gpu"]]
