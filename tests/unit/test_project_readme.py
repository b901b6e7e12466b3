"""What the README tells a reader to type exists and works."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.config import TrainConfig, load_config
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import MedImage

MAX_LINES = 180
MAX_TOOL_LINES = 15


@pytest.fixture(scope="module")
def readme(root: Path) -> str:
    return (root / "README.md").read_text()


def test_the_readme_is_short_and_its_links_exist(readme: str, root: Path) -> None:
    assert readme.count("\n") <= MAX_LINES
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", readme) if "://" not in link]
    assert links
    assert [link for link in links if not (root / link).exists()] == []


def test_the_make_commands_of_the_readme_are_targets(readme: str, root: Path) -> None:
    commands = set(re.findall(r"\bmake ([a-z-]+)", readme))
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), flags=re.MULTILINE))
    assert {"train", "test", "lint"} <= commands <= targets


def test_the_settings_that_the_readme_shows_are_valid(readme: str) -> None:
    shown = re.findall(r"--set ([^'\n]*(?:'[^'\n]*')?)'?", readme)
    overrides = [item for text in shown for item in re.findall(r"[a-z_]+\.[a-z_]+=(?:\[[^]]*\]|[^ `'\n]+)", text)]
    assert len(overrides) >= 5
    assert load_config(None, overrides) != TrainConfig()


def test_the_config_files_that_commands_name_exist_and_are_valid(readme: str, root: Path) -> None:
    named = {*re.findall(r"configs/train/\w+\.yaml", readme), "configs/train/main.yaml", "configs/train/smoke.yaml"}
    for name in sorted(named):
        assert isinstance(load_config(root / name), TrainConfig)


def test_the_tool_of_the_readme_runs(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL)
    assert len(block.splitlines()) <= MAX_TOOL_LINES
    (tmp_path / "my_tools.py").write_text(block)
    monkeypatch.syspath_prepend(str(tmp_path))
    client = LocalToolClient(["my_tools:Invert"])
    picture = MedImage(pixels=np.array([[0, 200], [50, 100]]), modality="CT")
    outcome = asyncio.run(client.call("invert", {"image_index": 0}, ToolContext({0: picture}, {})))
    assert outcome.result is not None, outcome.message
    assert outcome.result.text == "image 1 is the negative."
    assert outcome.result.images[0].pixels.tolist() == [[200, 0], [150, 100]]
    sys.modules.pop("my_tools", None)


def test_make_help_and_a_dry_run_of_each_target_work(root: Path) -> None:
    for target in ("help", "train", "test", "test-unit", "lint", "assets"):
        command = ["make", "--dry-run", target, "SMOKE=1", "SEED=3"]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
