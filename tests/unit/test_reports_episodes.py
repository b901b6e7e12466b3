"""`medvista-ray episodes`: listing, filters, drawing, compaction, and what a kill or a running writer does to them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray import cli
from medvista_ray.errors import RunFolderError
from medvista_ray.reports.compaction import compact
from medvista_ray.reports.drawing import GOLD, POLICY, drawable
from medvista_ray.reports.provenance import Provenance, tool_version
from medvista_ray.reports.segments import segments
from medvista_ray.reports.trajectory import TrajectoryLog, read_episodes
from medvista_ray.tools.parse.measure import Measure
from medvista_ray.tools.refine.zoom_in import ZoomIn
from medvista_ray.types import EpisodeStatus
from tests.synthetic_run import make_episode, make_task, phantom


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder with four episodes: right, wrong, truncated, answered without tools."""
    pictures = [phantom(0), phantom(1)]
    with TrajectoryLog(tmp_path / "episodes") as log:
        log.append(make_episode(make_task(0), pictures), "rl", None)
        log.append(make_episode(make_task(1), pictures, correct=False), "rl", None)
        cut = make_episode(make_task(2), pictures, correct=False, status=EpisodeStatus.TRUNCATED, answer=None)
        log.append(cut, "train", 3, keep_images=False)
        log.append(make_episode(make_task(3, "term_code"), pictures, tools=False), "no_tools", None)
    return tmp_path


def listed(run: Path, capsys: pytest.CaptureFixture[str], *options: str) -> list[str]:
    """Numbers of the episodes that `list` shows."""
    assert cli.main(["episodes", "list", str(run), *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    return [line.split()[0] for line in lines if line.split() and line.split()[0].isdigit() and "episodes" not in line]


@pytest.mark.parametrize(
    ("options", "numbers"),
    [
        ([], ["0", "1", "2", "3"]),
        (["--outcome", "right"], ["0", "3"]),
        (["--outcome", "truncated"], ["2"]),
        (["--tool", "zoom_in"], ["0", "1", "2"]),
        (["--tool", "zoom_in", "--outcome", "wrong"], ["1"]),
        (["--error", "E6"], ["1", "2"]),
        (["--arm", "rl", "--error", "E3"], ["1"]),
        (["--family", "term_code"], ["3"]),
        (["--task", "lesion_size-0002"], ["2"]),
        (["--limit", "1"], ["0"]),
    ],
)
def test_list_filters(
    run: Path, options: list[str], numbers: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert listed(run, capsys, *options) == numbers


def test_an_episode_is_drawn_with_its_boxes_in_their_places(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "drawn" / "e.png"
    assert cli.main(["episodes", "show", str(run), "--outcome", "right", "--out", str(out)]) == 0
    pixels = np.asarray(Image.open(out).convert("RGB")).astype(int)
    assert pixels.shape[1] == 1180

    def places(colour: str) -> np.ndarray:
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return np.argwhere((pixels == wanted).all(axis=2))

    for colour, box in ((GOLD, (480, 270, 690, 440)), (POLICY, (460, 260, 700, 450))):
        found = places(colour)
        left, right = found[:, 1].min() - 24, found[:, 1].max() - 24
        assert left == pytest.approx(box[0] * 0.3, abs=3)
        assert right == pytest.approx(box[2] * 0.3, abs=3)


def test_an_episode_without_kept_pictures_is_still_drawn(run: Path, tmp_path: Path) -> None:
    assert cli.main(["episodes", "show", str(run), "--number", "2", "--out", str(tmp_path / "e.png")]) == 0
    assert (tmp_path / "e.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["list", "/no/such"], "no trajectory log"),
        (["show", "RUN", "--number", "99"], "no such episode"),
        (["list", "RUN", "--outcome", "rihgt"], "'right'"),
    ],
)
def test_mistakes_are_one_line(run: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["episodes", *[str(run) if a == "RUN" else a for a in arguments]]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert len(error.splitlines()) == 1


def test_compaction_keeps_every_episode_and_drops_the_rest(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run / "episodes"
    before = list(read_episodes(folder))
    (folder / "images" / "0123456789abcdef.png").write_bytes(b"nobody's")
    with (folder / "episodes.jsonl").open("ab") as file:
        file.write(b'{"arm": "rl", "st')
    assert cli.main(["episodes", "compact", str(run)]) == 0
    assert "4 episodes kept, 1 torn lines and 1 unused pictures removed" in capsys.readouterr().out
    assert [path.name for path in segments(folder)] == ["episodes-0001.jsonl.gz"]
    assert list(read_episodes(folder)) == before
    assert len(list((folder / "images").iterdir())) == 2


def test_a_run_goes_on_after_compaction_and_is_compacted_again(run: Path) -> None:
    folder = run / "episodes"
    compact(folder)
    with TrajectoryLog(folder) as log:
        log.append(make_episode(make_task(9), [phantom(0), phantom(1)]), "rl", None)
    assert [record.task_id[-1] for record in read_episodes(folder)] == ["0", "1", "2", "3", "9"]
    assert compact(folder).num_episodes == 5
    assert [path.name for path in segments(folder)] == ["episodes-0001.jsonl.gz", "episodes-0002.jsonl.gz"]
    assert compact(folder).num_episodes == 5


def test_a_log_that_is_written_to_is_not_compacted_but_read(run: Path) -> None:
    folder = run / "episodes"
    with TrajectoryLog(folder) as log:
        with pytest.raises(RunFolderError, match="is writing"):
            compact(folder)
        log.append(make_episode(make_task(9), [phantom(0), phantom(1)]), "rl", None)
        assert len(list(read_episodes(folder))) == 5


@pytest.mark.parametrize("left", ["moved", "compressed"])
def test_a_kill_in_the_middle_of_compaction_loses_and_doubles_nothing(run: Path, left: str) -> None:
    folder = run / "episodes"
    before = list(read_episodes(folder))
    live = (folder / "episodes.jsonl").read_bytes()
    if left == "compressed":
        compact(folder)
        (folder / "episodes-0001.jsonl").write_bytes(live)  # not yet unlinked
    else:
        (folder / "episodes.jsonl").rename(folder / "episodes-0001.jsonl")
    assert list(read_episodes(folder)) == before
    compact(folder)
    assert list(read_episodes(folder)) == before
    assert [path.name for path in segments(folder)] == ["episodes-0001.jsonl.gz"]
    assert not (folder / "episodes-0001.jsonl").exists()


WRITER = """
import sys
from pathlib import Path
from medvista_ray.reports.trajectory import TrajectoryLog
from tests.synthetic_run import make_episode, make_task, phantom
log = TrajectoryLog(Path(sys.argv[1]))
for number in range(10**6):
    log.append(make_episode(make_task(number), [phantom(number % 7), phantom(1)]), "train", number)
"""


def test_a_log_is_readable_while_it_grows_and_after_its_writer_was_killed(tmp_path: Path, root: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], cwd=root)
    try:
        deadline = time.monotonic() + 60
        while len(list(read_episodes(tmp_path))) < 3:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    records = list(read_episodes(tmp_path))
    assert [record.step for record in records] == list(range(len(records)))
    assert compact(tmp_path).num_episodes == len(records), "the killed writer's lock is gone"


def test_versions_of_tools_prompt_and_tokens_are_on_the_line(tmp_path: Path) -> None:
    provenance = Provenance.of((ZoomIn, Measure), 6)
    with TrajectoryLog(tmp_path, provenance=provenance, token_versions=True) as log:
        log.append(make_episode(make_task(0), [phantom(0), phantom(1)], version=4), "train", 1)
    (record,) = read_episodes(tmp_path)
    assert record.tool_versions == {"zoom_in": tool_version(ZoomIn), "measure": tool_version(Measure)}
    assert record.prompt_version == provenance.prompt_version != Provenance.of((ZoomIn,), 6).prompt_version
    assert Provenance.of((ZoomIn, Measure), 6, "names").prompt_version != provenance.prompt_version
    assert record.token_versions == ((4, 31), (5, 29))


def test_a_tools_version_follows_what_it_says() -> None:
    class Other(ZoomIn):
        description = "another description."

    assert len({tool_version(ZoomIn), tool_version(Measure), tool_version(Other)}) == 3


def test_characters_that_the_font_lacks_are_spelt() -> None:
    assert drawable("Größe 3 µm² ≥ 2 × 4 → é ☃") == "Grosse 3 um2 >= 2 x 4 -> e ?"
