"""What the README tells a reader to type exists and works."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.config import TrainConfig, load_config
from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.protocol import render_turn
from medvista_ray.tasks.source import load_source
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import MedImage, Split, Task

MAX_LINES = 225
MAX_EXAMPLE_LINES = 15


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


def example(readme: str, marker: str) -> str:
    """The only Python block of the README that holds `marker`."""
    (block,) = (block for block in re.findall(r"```python\n(.*?)```", readme, flags=re.DOTALL) if marker in block)
    assert len(block.splitlines()) <= MAX_EXAMPLE_LINES
    return block


@pytest.fixture
def written(readme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], None]]:
    """Writes an example to the module that the README names, where it can be imported."""
    modules: list[str] = []

    def write(marker: str, module: str) -> None:
        assert f"`{module}.py`" in readme
        (tmp_path / f"{module}.py").write_text(example(readme, marker))
        modules.append(module)

    monkeypatch.syspath_prepend(str(tmp_path))
    yield write
    for module in modules:
        sys.modules.pop(module, None)


def test_the_tool_of_the_readme_runs(written: Callable[[str, str], None]) -> None:
    written("class Invert(Tool)", "my_tools")
    client = LocalToolClient(["my_tools:Invert"])
    picture = MedImage(pixels=np.array([[0, 200], [50, 100]]), modality="CT")
    outcome = asyncio.run(client.call("invert", {"image_index": 0}, ToolContext({0: picture}, {})))
    assert outcome.result is not None, outcome.message
    assert outcome.result.text == "image 1 is the negative."
    assert outcome.result.images[0].pixels.tolist() == [[200, 0], [150, 100]]


def test_the_source_of_the_readme_is_trained_on_and_its_grader_decides_the_reward(
    readme: str, tmp_path: Path, written: Callable[[str, str], None]
) -> None:
    written("class MyTasks", "my_tasks")
    written("def any_order", "my_grader")
    row = {"id": "q1", "subject": "p1", "family": "site", "modality": "X-ray", "question": "Where?", "answer": "left upper lobe"}
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "train.jsonl").write_text(json.dumps(row | {"recipe": {"file": "chest.png"}}) + "\n")
    Image.fromarray(np.array([[0, 200], [50, 100]], np.uint8)).save(folder / "chest.png")
    (wish,) = re.findall(r"--set (bench\.source=my_tasks:\S+) bench\.path=FOLDER", readme)
    source = load_source(load_config(None, [wish, f"bench.path={folder}"]).bench)
    (task,) = source.tasks(Split.TRAIN)
    (picture,) = source.open(task)
    assert (picture.pixels[0, 1], picture.modality) == (200, "X-ray")
    workshop = Workshop(EnvSettings(tools=()), source=source)
    rewards = {answer: reward_of(workshop, task, answer) for answer in ("upper lobe, left", "left lobe", "Left upper lobe.")}
    assert rewards == {"upper lobe, left": 1.2, "left lobe": 0.2, "Left upper lobe.": 1.2}


def reward_of(workshop: Workshop, task: Task, answer: str) -> float:
    """Of an episode that answers at once."""
    session = workshop.session()
    asyncio.run(session.reset(task))
    asyncio.run(session.step(render_turn("", answer)))
    assert session.episode is not None
    return session.episode.reward


def test_make_help_and_a_dry_run_of_each_target_work(root: Path) -> None:
    for target in ("help", "train", "test", "test-unit", "lint", "assets"):
        command = ["make", "--dry-run", target, "SMOKE=1", "SEED=3"]
        result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
