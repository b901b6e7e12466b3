"""The trajectory log: everything but pixels on a line, pictures once, nothing lost to a kill."""

from __future__ import annotations

import json
import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medvista_ray.reports import trajectory
from medvista_ray.reports.files import write_atomic
from medvista_ray.reports.trajectory import PictureQuota, TrajectoryLog, picture_key, picture_path, plain, read_episodes
from medvista_ray.types import EpisodeStatus, ErrorCode, Turn
from tests.synthetic_run import make_episode, make_task, phantom


def test_an_episode_reads_back_as_it_was(tmp_path: Path) -> None:
    episode = make_episode(make_task(7), [phantom(0), phantom(1)], correct=False, version=12)
    with TrajectoryLog(tmp_path) as log:
        log.append(episode, "rl", None)
    (record,) = read_episodes(tmp_path)
    assert (record.task_id, record.question, record.gold) == (episode.task.id, episode.task.question, "24")
    assert record.regions == episode.task.regions
    assert list(record.turns) == episode.turns
    assert record.error_codes == (ErrorCode.E3, ErrorCode.E6)
    assert record.status is EpisodeStatus.ANSWERED
    assert record.reward_parts == episode.reward_parts
    assert record.versions == (12, 13)
    assert (record.num_tokens, record.num_sampled) == (120, 60)
    assert (record.num_attempts, record.num_calls) == (2, 1)


def test_episodes_that_are_logged_together_are_logged_as_one_by_one(tmp_path: Path) -> None:
    episodes = [make_episode(make_task(i), [phantom(i), phantom(1)], version=i) for i in range(3)]
    with TrajectoryLog(tmp_path / "together") as together, TrajectoryLog(tmp_path / "single") as single:
        written = together.extend(iter(episodes), "train", 2)
        assert written == [single.append(episode, "train", 2) for episode in episodes]
        assert together.extend([], "train", 2) == []
    assert list(read_episodes(tmp_path / "together")) == list(read_episodes(tmp_path / "single"))
    lines = [(tmp_path / name / trajectory.LOG_NAME).read_bytes() for name in ("together", "single")]
    assert lines[0] == lines[1]
    assert lines[0].count(b"\n") == 3


def test_pictures_are_lossless_and_stored_once(tmp_path: Path) -> None:
    pictures = [phantom(0), phantom(1)]
    with TrajectoryLog(tmp_path) as log:
        for _ in range(3):
            record = log.append(make_episode(make_task(0), pictures), "rl", None)
    assert len(list((tmp_path / "images").iterdir())) == 2
    for key, pixels in zip(record.images, pictures, strict=True):
        assert np.array_equal(np.asarray(Image.open(picture_path(tmp_path, key))), pixels)


def test_a_picture_that_a_group_shares_is_hashed_once_and_one_that_changes_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[int] = []

    def watched(pixels: np.ndarray) -> str:
        hashed.append(id(pixels))
        return picture_key(pixels)

    monkeypatch.setattr(trajectory, "picture_key", watched)
    shared, own = phantom(0), phantom(1)
    shared.flags.writeable = False
    with TrajectoryLog(tmp_path) as log:
        records = [log.append(make_episode(make_task(0), [shared, own]), "train", 1) for _ in range(3)]
        own[:] = 255 - own
        changed = log.append(make_episode(make_task(0), [shared, own]), "train", 1)
    assert hashed.count(id(shared)) == 1
    assert {record.images for record in records} == {(picture_key(shared), picture_key(phantom(1)))}
    assert changed.images == (picture_key(shared), picture_key(own)) != records[0].images


def test_a_long_training_log_keeps_few_pictures_but_every_line(tmp_path: Path) -> None:
    with TrajectoryLog(tmp_path, PictureQuota(per_step=2)) as log:
        for step in range(5):
            for number in range(20):
                log.append(make_episode(make_task(number), [phantom(100 * step + number)], tools=False), "train", step)
    records = list(read_episodes(tmp_path))
    assert len(records) == 100
    assert sum(record.has_pictures for record in records) == 10
    assert len(list((tmp_path / "images").iterdir())) == 10
    assert len(list(read_episodes(tmp_path, with_pictures=True))) == 10


def test_an_evaluation_keeps_pictures_of_right_and_wrong_of_each_family(tmp_path: Path) -> None:
    with TrajectoryLog(tmp_path, PictureQuota(per_cell=1)) as log:
        for number in range(6):
            for family in ("lesion_size", "term_code"):
                task = make_task(number, family)
                log.append(make_episode(task, [phantom(0), phantom(1)], correct=number % 2 == 0), "rl", None)
    kept = {(record.family, record.correct) for record in read_episodes(tmp_path, with_pictures=True)}
    assert len(kept) == 4


def test_a_torn_last_line_is_skipped_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with TrajectoryLog(tmp_path) as log:
        for number in range(3):
            log.append(make_episode(make_task(number), [phantom(0), phantom(1)]), "rl", None)
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    with caplog.at_level(logging.WARNING):
        assert [record.task_id[-1] for record in read_episodes(tmp_path)] == ["0", "1"]
    assert "line 3 is torn" in caplog.text


def test_a_log_continues_after_a_torn_line(tmp_path: Path) -> None:
    with TrajectoryLog(tmp_path) as log:
        log.append(make_episode(make_task(0), [phantom(0), phantom(1)]), "rl", None)
    path = tmp_path / "episodes.jsonl"
    path.write_bytes(path.read_bytes() + b'{"arm": "rl", "ste')
    with TrajectoryLog(tmp_path) as log:
        log.append(make_episode(make_task(1), [phantom(0), phantom(1)]), "rl", None)
    assert [record.task_id[-1] for record in read_episodes(tmp_path)] == ["0", "1"]


def test_a_line_is_on_disk_before_the_log_is_closed(tmp_path: Path) -> None:
    log = TrajectoryLog(tmp_path)
    log.append(make_episode(make_task(0), [phantom(0), phantom(1)]), "train", 1)
    assert len(list(read_episodes(tmp_path))) == 1
    log.close()


def test_what_json_cannot_hold_does_not_cost_a_line(tmp_path: Path) -> None:
    arguments = json.loads('{"query": "\\ud800", "k": NaN, "box": [Infinity, 1, {"a": -Infinity}], "huge": 1' + "0" * 400 + "}")
    turn = Turn(text="\ud83d unpaired", tool="search_text", arguments=arguments, error=ErrorCode.E3)
    with TrajectoryLog(tmp_path) as log:
        log.append(make_episode(make_task(0), [phantom(0)], turns=[turn]), "rl", None)
    (record,) = read_episodes(tmp_path)
    assert record.turns[0].text == "? unpaired"
    assert record.turns[0].arguments["k"] == "nan"
    assert record.turns[0].arguments["query"] == "?"


@pytest.mark.parametrize("text", ["plain", "caf\u00e9 \U0001fac0", "half \ud83d", 'says "\\\\ud800"'])
@pytest.mark.parametrize("odd", [1, float("nan"), np.float32(0.5), (1, None, True)])
def test_the_short_way_to_a_line_writes_what_the_long_one_does(tmp_path: Path, text: str, odd: object) -> None:
    turn = Turn(text=text, tool="zoom_in", arguments={"bbox": [1, 2], "odd": odd, "more": {"x": text}}, error=ErrorCode.E4)
    with TrajectoryLog(tmp_path) as log:
        record = log.append(make_episode(make_task(0), [phantom(0)], turns=[turn]), "rl", None)
    assert json.loads((tmp_path / "episodes.jsonl").read_text()) == plain(record.model_dump(mode="python"))


def test_an_episode_without_a_sampled_token_has_no_versions(tmp_path: Path) -> None:
    episode = make_episode(make_task(0), [phantom(0)], loss_mask=np.zeros(120, dtype=np.bool_), turns=[])
    with TrajectoryLog(tmp_path) as log:
        assert log.append(episode, "rl", None).versions is None


def test_threads_do_not_mix_their_lines(tmp_path: Path) -> None:
    pictures = [phantom(0), phantom(1)]
    with TrajectoryLog(tmp_path) as log, ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: log.append(make_episode(make_task(n), pictures), "train", n), range(100)))
    assert len({record.task_id for record in read_episodes(tmp_path)}) == 100


def test_only_the_asked_arm_is_read(tmp_path: Path) -> None:
    with TrajectoryLog(tmp_path) as log:
        for arm in ("sft", "rl", "rl"):
            log.append(make_episode(make_task(0), [phantom(0), phantom(1)]), arm, None)
    assert len(list(read_episodes(tmp_path, arm="rl"))) == 2
    assert list(read_episodes(tmp_path / "absent")) == []


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "summary.json"
    write_atomic(path, b"old")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
