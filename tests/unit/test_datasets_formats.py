"""Each public set in its published schema: its questions, its gold answers, its pictures, and nothing more to the policy."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.config import BenchConfig
from medvista_ray.errors import ConfigError, DatasetError, ImageError
from medvista_ray.tasks.datasets import DATASETS
from medvista_ray.tasks.datasets.pictures import Pictures, decode
from medvista_ray.tasks.datasets.slake import Slake
from medvista_ray.tasks.graders import grade
from medvista_ray.tasks.source import load_source
from medvista_ray.types import AnswerKind, Split, Task
from tests.unit.dataset_files import WRITERS, opened, put, put_zip, shade, slake


def asked(name: str, root: Path, split: Split = Split.TEST) -> dict[str, Task]:
    """Tasks by the end of their id."""
    return {task.id.split("/", 1)[1]: task for task in opened(name, root).tasks(split)}


def test_every_registered_set_has_a_folder_in_its_schema() -> None:
    assert set(WRITERS) == set(DATASETS)


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_every_question_opens_its_pictures_and_its_gold_is_right(name: str, tmp_path: Path) -> None:
    source = opened(name, tmp_path)
    tasks = [task for split in Split for task in source.tasks(split)]
    assert tasks
    assert len({task.id for task in tasks}) == len(tasks)
    for task in pickle.loads(pickle.dumps(tasks)):
        pictures = source.open(task)
        assert len(pictures) == task.num_images >= 1
        assert all(picture.display().shape == (30, 40, 3) for picture in pictures)
        assert grade(task, task.answer)
        assert not grade(task, None)
        assert "SECRET" not in task.question
        assert json.loads(json.dumps(task.recipe)) == task.recipe  # opened on another node from plain JSON


@pytest.mark.parametrize("name", sorted(DATASETS))
def test_a_fresh_source_opens_a_task_without_reading_the_tables(name: str, tmp_path: Path) -> None:
    first = opened(name, tmp_path)
    task = next(task for split in Split for task in first.tasks(split))
    fresh = opened(name, tmp_path)
    assert [p.key for p in fresh.open(task)] == [p.key for p in first.open(task)]
    assert "records" not in vars(fresh)


def test_vqa_rad_keeps_the_papers_test_split_and_answer_types(tmp_path: Path) -> None:
    tasks = asked("vqa_rad", tmp_path)
    assert set(tasks) == {"4", "5"}
    assert (tasks["4"].kind, tasks["4"].family, tasks["4"].answer) == (AnswerKind.TEXT, "closed_modality", "CT")
    assert tasks["5"].kind is AnswerKind.LIST
    (number,) = (t for t in asked("vqa_rad", tmp_path, Split.TRAIN).values() if t.answer == "5")
    assert grade(number, "5")


def test_a_yes_no_question_says_which_form_is_graded_and_takes_nothing_else(tmp_path: Path) -> None:
    (task,) = (task for task in opened("vqa_rad_parquet", tmp_path).tasks(Split.TEST) if task.answer == "no")
    assert task.question.endswith("Answer yes or no.")
    assert (task.kind, task.choices, task.chance) == (AnswerKind.CHOICE, ("yes", "no"), 0.5)
    assert grade(task, "No.")
    for answer in ("yes", "not", "no and yes", "abnormal", "no it is not", "unknown"):
        assert not grade(task, answer)


def test_parquet_rows_are_found_across_row_groups(tmp_path: Path) -> None:
    source = opened("microvqa", tmp_path)
    for task in source.tasks(Split.TEST):
        number = int(task.id.rpartition("/")[2])
        assert [int(picture.pixels[0, 0]) for picture in source.open(task)] == [number, number + 100]
        assert task.answer == ("Actin", "Tubulin", "Lamin")[number % 3]


def test_slake_is_read_from_a_folder_and_from_its_zip_alike(tmp_path: Path) -> None:
    slake(tmp_path / "b", zipped=True)
    unpacked, zipped = opened("slake", tmp_path / "a"), opened("slake", tmp_path / "b")
    for split in Split:
        for one, other in zip(unpacked.tasks(split), zipped.tasks(split), strict=True):
            assert (one.id, one.regions, one.facts) == (other.id, other.regions, other.facts)
            assert unpacked.open(one)[0].key == zipped.open(other)[0].key


def test_slake_boxes_masks_and_triples_say_where_and_what_a_tool_should_look_for(tmp_path: Path) -> None:
    source = opened("slake", tmp_path)
    assert isinstance(source, Slake)
    side, organs = source.tasks(Split.TRAIN)
    left = (250, 167, 500, 667)  # x 10..20 of 40, y 5..20 of 30
    assert side.regions == (left,)
    assert organs.regions == (left, (625, 167, 875, 667), (0, 0, 1000, 100))  # "lung" without a side: both
    masks = source.masks(side)
    assert {name: int(mask.sum()) for name, mask in masks.items()} == {"Heart": 120, "Left Lung": 150, "Right Lung": 150}
    assert np.argwhere(masks["Left Lung"]).min(0).tolist() == [5, 10]
    modality, knowledge = source.tasks(Split.TEST)
    assert modality.facts["lookup"] == {}
    gold = ["medical therapy, supportive therapy"]
    assert knowledge.facts["lookup"] == {"entity": "Pneumonia", "relation": "treatment", "values": gold}
    assert ("Lung", "function", "breathe") in source.triples()


def test_slakes_gold_regions_and_triples_are_not_in_what_the_policy_reads(tmp_path: Path) -> None:
    for split in Split:
        for task in opened("slake", tmp_path).tasks(split):
            assert task.answer.casefold() not in task.question.casefold() or task.answer == "Yes"
            assert "[" not in task.question


def test_slakes_languages_are_two_sources(tmp_path: Path) -> None:
    (task,) = opened("slake_zh", tmp_path).tasks(Split.TRAIN)
    assert grade(task, "心脏、肺")
    assert not grade(task, "肺")
    assert all(task.question.isascii() for split in Split for task in opened("slake", tmp_path).tasks(split))


def test_an_open_list_is_right_in_any_order_and_only_whole(tmp_path: Path) -> None:
    (task,) = (t for t in opened("slake", tmp_path).tasks(Split.TRAIN) if t.kind is AnswerKind.LIST)
    for answer in ("Heart, Lung", "lung and heart", "heart; lung."):
        assert grade(task, answer)
    for answer in ("lung", "lung, heart, liver", "lung, lung, heart", "lung or heart", "heart lung", "", ","):
        assert not grade(task, answer)


@pytest.mark.parametrize("name", ["pmc_vqa_v1", "pmc_vqa_v2"])
def test_pmc_vqa_shows_each_choice_behind_one_letter_and_never_the_caption(name: str, tmp_path: Path) -> None:
    task = opened(name, tmp_path).tasks(Split.TEST)[0]
    assert f"\nB) {task.answer}\n" in task.question
    assert task.question.count("B:") == 0
    assert "caption" not in json.dumps([task.question, dict(task.facts), dict(task.recipe)]).casefold()
    for answer in ("B", "b)", task.answer, f"B) {task.answer}"):
        assert grade(task, answer)
    for answer in ("A", "A or B", f"A) {task.answer}", "BB", ""):
        assert not grade(task, answer)


@pytest.mark.parametrize("gold", ["B", "CT", "B: CT"])
def test_pmc_vqas_second_version_may_name_its_answer_by_letter_or_in_words(gold: str, tmp_path: Path) -> None:
    WRITERS["pmc_vqa_v2"](tmp_path)
    table = tmp_path / "test_2.csv"
    put(table, table.read_text().replace(",B,test", f",{gold},test"))
    assert [task.answer for task in opened("pmc_vqa_v2", tmp_path).tasks(Split.TEST)] == ["CT"]


def test_the_two_versions_of_pmc_vqa_do_not_pass_for_each_other(tmp_path: Path) -> None:
    WRITERS["pmc_vqa_v1"](tmp_path)
    with pytest.raises(DatasetError, match="test_2"):
        opened("pmc_vqa_v2", tmp_path)


def test_omnimedvqa_takes_the_options_own_text_and_the_misspelt_key(tmp_path: Path) -> None:
    source = opened("omnimedvqa", tmp_path)
    tasks = [task for split in Split for task in source.tasks(split)]
    assert len(tasks) == 80
    assert {task.answer for task in tasks} == {"Normal"}
    assert {task.modality for task in tasks} == {"Fundus Photography"}
    assert tasks[0].choices == ("Glaucoma.", "Normal", "Cataract")


def test_medxpertqa_gives_all_pictures_and_shows_its_choices_once(tmp_path: Path) -> None:
    (task,) = opened("medxpertqa_mm", tmp_path).tasks(Split.TEST)
    assert task.num_images == 2
    assert task.question.count("Scurvy") == 1
    assert grade(task, "D")
    assert task.chance == pytest.approx(0.2)


def test_mmmu_gives_all_pictures_counts_them_from_0_and_never_asks_what_is_hidden(tmp_path: Path) -> None:
    tasks = {key.rpartition("_")[2]: task for key, task in asked("mmmu_med", tmp_path).items()}
    assert set(tasks) == {"1", "2", "3"}
    assert tasks["1"].num_images == 2
    assert tasks["1"].answer == "[image 1]"
    assert "<image" not in tasks["1"].question
    assert grade(tasks["2"], "8.4")
    assert not grade(tasks["2"], "8.41")
    assert grade(tasks["3"], "thigh bone")
    assert not grade(tasks["3"], "['femur', 'thigh bone']")


def test_gmai_reads_wide_quoted_and_shared_cells(tmp_path: Path) -> None:
    source = opened("gmai_mmbench", tmp_path)
    first, second, third = source.tasks(Split.TEST)
    assert [task.answer for task in (first, second, third)] == ["Polyp", "None", "Cyst"]
    assert second.question.startswith('Which\tone,\nsay "x"?')
    assert [int(source.open(task)[0].pixels[0, 0]) for task in (first, second, third)] == [77, 78, 78]


def test_bounds_take_a_sample_by_the_seed_and_families_filter(tmp_path: Path) -> None:
    first = [t.id for t in opened("omnimedvqa", tmp_path, num_train=10).tasks(Split.TRAIN)]
    assert len(first) == 10
    assert first == [t.id for t in opened("omnimedvqa", tmp_path, num_train=10).tasks(Split.TRAIN)]
    assert first != [t.id for t in opened("omnimedvqa", tmp_path, num_train=10, seed=1).tasks(Split.TRAIN)]
    kept = opened("vqa_rad", tmp_path / "b", families=("closed_modality",)).tasks(Split.TEST)
    assert [task.id for task in kept] == ["vqa_rad/4"]
    with pytest.raises(ConfigError, match="did you mean 'closed_modality'"):
        opened("vqa_rad", tmp_path / "b", families=("closed_modalities",)).tasks(Split.TEST)


def test_a_set_in_a_folder_of_the_folder_is_found(tmp_path: Path) -> None:
    WRITERS["slake"](tmp_path / "SLAKE")
    assert opened("slake", tmp_path).root == tmp_path / "SLAKE"


def test_a_source_without_its_folder_says_what_is_wanted(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"bench\.path.*huggingface"):
        load_source(BenchConfig(source="slake"))
    with pytest.raises(DatasetError, match="no folder"):
        load_source(BenchConfig(source="slake", path=tmp_path / "absent"))
    with pytest.raises(DatasetError, match=r"looked for: test\.json"):
        load_source(BenchConfig(source="slake", path=tmp_path))


def test_a_split_whose_pictures_are_all_missing_is_an_error_and_not_an_empty_split(tmp_path: Path) -> None:
    source = opened("pmc_vqa_v2", tmp_path)
    for path in (tmp_path / "figures").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match=r"none of 1 test questions.*PMC91_Fig1_2\.jpg"):
        source.tasks(Split.TEST)


def test_a_table_of_another_version_is_refused_by_its_missing_column(tmp_path: Path) -> None:
    source = opened("pmc_vqa_v1", tmp_path)
    put(tmp_path / "test_clean.csv", "index,Figure_path,Question\n0,a.jpg,What?\n")
    with pytest.raises(DatasetError, match=r"no column 'Choice A'"):
        source.tasks(Split.TEST)


def test_a_picture_name_that_leads_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "secret.png", shade(1))
    (tmp_path / "set").mkdir()
    pictures = Pictures(tmp_path / "set")
    assert pictures.find("../secret.png") is None
    put_zip(tmp_path / "set" / "a.zip", {"deep/images/b.png": shade(2)})
    assert pictures.find("images/b.png", ("",), ("a.zip",)) == {"zip": "a.zip", "member": "deep/images/b.png"}
    assert pictures.find("ages/b.png", ("",), ("a.zip",)) is None


def test_every_kind_of_picture_becomes_grey_or_colour_and_a_damaged_one_an_error() -> None:
    for mode, kind in (("1", "PNG"), ("L", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("CMYK", "JPEG"), ("I;16", "PNG")):
        picture = decode(shade(200, kind, mode=mode), "CT", "x")
        assert picture.pixels.ndim == (2 if mode in ("1", "L", "I;16") else 3), mode
        assert picture.display().shape == (30, 40, 3)
    assert int(decode(shade(37), "CT", "x").display()[0, 0, 0]) == 37  # no stretching of a grey picture
    whole = shade(200, "JPEG", size=(400, 300))
    for data in (b"", b"no picture", whole[: len(whole) // 2]):
        with pytest.raises(ImageError, match="x"):
            decode(data, "CT", "x")
