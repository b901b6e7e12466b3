"""Splits of the public sets: pinned by case, clean of the test's cases, or as published; and the check that finds leaks."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from medvista_ray import cli
from medvista_ray.errors import ConfigError, DatasetError
from medvista_ray.tasks.datasets.check import check, find_sets
from medvista_ray.tasks.datasets.rows import Row
from medvista_ray.tasks.datasets.splits import assign, pinned_split
from medvista_ray.tasks.datasets.vqa_rad import VqaRad, VqaRadParquet
from medvista_ray.types import Split
from tests.unit.dataset_files import WRITERS, opened, put, shade


def row(identifier: str, case: str, split: Split | None) -> Row:
    return Row(id=identifier, split=split, case=case, question="?", answer="yes", pictures=({"file": identifier},))


def test_a_pinned_split_is_a_function_of_the_set_and_the_case_alone() -> None:
    pinned = {case: pinned_split("omnimedvqa", f"case {case}") for case in range(2000)}
    shares = Counter(pinned.values())
    assert 0.07 < shares[Split.TEST] / 2000 < 0.13
    assert 0.07 < shares[Split.VALIDATION] / 2000 < 0.13
    assert any(pinned_split("slake", f"case {case}") is not split for case, split in pinned.items())
    # Written down: a change of the pin, the hash or the shares would silently mix test cases into training.
    assert {case: pinned_split("omnimedvqa", case) for case in PINNED} == PINNED


PINNED = {
    **dict.fromkeys("abcd", Split.TRAIN),
    **dict.fromkeys("egk", Split.VALIDATION),
    **dict.fromkeys(("11", "15", "16"), Split.TEST),
}


def test_clean_splits_keep_the_published_test_and_take_its_cases_out_of_training() -> None:
    rows = [row(str(i), f"case{i % 40}", Split.TRAIN) for i in range(200)]
    rows += [row(f"t{i}", f"case{i}", Split.TEST) for i in range(5)]
    clean = assign(rows, "set", "clean")
    assert [r.id for r in clean.rows[Split.TEST]] == [f"t{i}" for i in range(5)]
    cases = {split: {r.case for r in clean.rows[split]} for split in Split}
    assert cases[Split.VALIDATION]
    assert not cases[Split.TRAIN] & cases[Split.TEST]
    assert not cases[Split.TRAIN] & cases[Split.VALIDATION]
    assert not cases[Split.VALIDATION] & cases[Split.TEST]
    assert sum(map(len, clean.rows.values())) + sum(clean.num_dropped.values()) == len(rows)
    assert sum(clean.num_dropped.values()) == 25
    published = assign(rows, "set", "published")
    assert sum(map(len, published.rows.values())) == len(rows)
    assert {r.case for r in published.rows[Split.TEST]} & {r.case for r in published.rows[Split.TRAIN]}


def test_a_published_validation_split_is_kept_and_loses_only_to_the_test() -> None:
    rows = [row("a", "x", Split.TRAIN), row("b", "x", Split.VALIDATION)]
    rows += [row("c", "y", Split.VALIDATION), row("d", "y", Split.TEST)]
    clean = assign(rows, "set", "clean")
    assert {split: [r.id for r in clean.rows[split]] for split in Split} == {
        Split.TRAIN: [],
        Split.VALIDATION: ["b"],
        Split.TEST: ["d"],
    }


@pytest.mark.parametrize("name", sorted(WRITERS))
@pytest.mark.parametrize("splits", ["clean", "case"])
def test_no_case_and_no_picture_is_in_two_used_splits(name: str, splits: str, tmp_path: Path) -> None:
    if splits == "case" and opened(name, tmp_path).evaluation_only:
        with pytest.raises(ConfigError, match="evaluation alone"):
            opened(name, tmp_path, splits="case")
        return
    source = opened(name, tmp_path, splits=splits)
    where: dict[str, set[Split]] = {}
    for split in Split:
        for task in source.tasks(split):
            for key in (task.subject, *(picture.key for picture in source.open(task))):
                where.setdefault(key, set()).add(split)
    assert where
    assert all(len(found) == 1 for found in where.values())


def test_a_set_without_published_splits_is_split_by_picture_not_by_question(tmp_path: Path) -> None:
    source = opened("omnimedvqa", tmp_path)
    counts = {split: len(source.tasks(split)) for split in Split}
    assert sum(counts.values()) == 80
    assert all(number % 2 == 0 and number for number in counts.values())  # both questions of a picture go together


def test_sets_for_evaluation_have_no_training_questions(tmp_path: Path) -> None:
    for name in ("medxpertqa_mm", "mmmu_med", "microvqa", "gmai_mmbench"):
        assert not opened(name, tmp_path / name).tasks(Split.TRAIN)


def test_the_check_counts_what_is_there_and_names_the_published_leak(tmp_path: Path) -> None:
    WRITERS["vqa_rad"](tmp_path)
    report = check(VqaRad, tmp_path)
    assert report.num_published == {"train": 3, "test": 2}
    assert sum(report.num_used.values()) + sum(report.num_dropped.values()) == 5
    assert report.num_dropped["train"] + report.num_dropped["validation"] == 1
    assert report.num_used["test"] == 2
    assert report.num_closed["test"] == 1
    assert report.leaks_published is not None
    assert report.leaks_published.num_cases == 1
    assert report.leaks_published.examples == ("https://medpix/case1",)
    assert not report.leaks_used
    assert report.problems == []
    assert any("451" in note for note in report.notes)  # fewer questions than its authors count
    assert check(VqaRad, tmp_path, "published").problems == ["1 cases and 0 pictures in two used splits"]


def test_one_picture_in_two_encodings_is_a_leak(tmp_path: Path) -> None:
    WRITERS["vqa_rad"](tmp_path)
    folder = tmp_path / "VQA_RAD Image Folder"
    pixels = Image.open(folder / "synpic2.jpg").convert("RGB")
    out = io.BytesIO()
    pixels.save(out, "PNG")
    put(folder / "synpic5.jpg", out.getvalue())  # of the test, the same pixels as case 2 of training, in colour
    report = check(VqaRad, tmp_path)
    assert report.leaks_used is not None
    assert (report.leaks_used.num_cases, report.leaks_used.num_pictures) == (0, 1)
    assert report.problems
    assert not check(VqaRad, tmp_path, pictures=False).problems  # by case alone it cannot be seen


def test_the_check_counts_missing_damaged_and_bad(tmp_path: Path) -> None:
    WRITERS["vqa_rad"](tmp_path)
    table = tmp_path / "VQA_RAD Dataset Public.json"
    records = json.loads(table.read_text())
    records += [{**records[0]}, {**records[1], "qid": "8", "answer": ""}]
    put(table, json.dumps(records))
    (tmp_path / "VQA_RAD Image Folder" / "synpic2.jpg").unlink()
    put(tmp_path / "VQA_RAD Image Folder" / "synpic5.jpg", shade(9, "JPEG")[:200])
    report = check(VqaRad, tmp_path)
    assert (report.num_without_picture, report.num_bad, report.num_damaged) == (1, 2, 1)
    assert report.examples["missing pictures"] == ["synpic2.jpg"]
    bad = ["question 1: its id is used twice", "VQA_RAD Dataset Public.json record 6: no answer"]
    assert report.examples["bad records"] == bad
    assert len(report.problems) == 3


def test_the_fingerprint_tells_revisions_apart(tmp_path: Path) -> None:
    WRITERS["vqa_rad"](tmp_path / "a")
    first = check(VqaRad, tmp_path / "a").fingerprint
    WRITERS["vqa_rad"](tmp_path / "b")
    assert check(VqaRad, tmp_path / "b").fingerprint == first
    table = tmp_path / "b" / "VQA_RAD Dataset Public.json"
    put(table, table.read_text().replace("Axial", "axial"))
    assert check(VqaRad, tmp_path / "b").fingerprint != first


def test_sets_with_the_same_columns_are_told_apart(tmp_path: Path) -> None:
    for name in WRITERS:
        if name != "slake_zh":  # the same files as slake
            WRITERS[name](tmp_path / name)
            found = {kind.name for kind in find_sets(tmp_path / name)}
            assert found == ({"slake", "slake_zh"} if name == "slake" else {name})
    assert {kind.name for kind in find_sets(tmp_path)} == set(WRITERS)
    assert find_sets(tmp_path / "vqa_rad_parquet", "vqa_rad_parquet") == [VqaRadParquet]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no known set"):
        find_sets(tmp_path / "empty")


def test_data_check_shows_counts_and_ends_with_1_where_something_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "sets"
    WRITERS["slake"](folder / "SLAKE")
    WRITERS["pmc_vqa_v1"](folder / "PMC-VQA")
    assert cli.main(["data", "check", str(folder), "--json", str(tmp_path / "report.json")]) == 0
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("SLAKE (English)", "SLAKE (Chinese)", "PMC-VQA v1", "share 1 cases", "CC-BY-4.0"))
    reports = {report["name"]: report for report in json.loads((tmp_path / "report.json").read_text())}
    assert reports["slake"]["num_used"] == {"train": 2, "validation": 1, "test": 2}
    assert reports["pmc_vqa_v1"]["leaks_used"]["num_cases"] == 0
    (folder / "SLAKE" / "train.json").unlink()
    assert cli.main(["data", "check", str(folder), "--set", "slake"]) == 1
    assert "PROBLEM: absent: train.json" in capsys.readouterr().out
    assert cli.main(["data", "check", str(tmp_path / "none")]) == 2
    assert cli.main(["data", "check", str(folder), "--set", "slak"]) == 2
    assert "did you mean 'slake'" in capsys.readouterr().err


def test_data_list_names_each_set_and_its_licence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert cli.main(["data", "list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in WRITERS)
