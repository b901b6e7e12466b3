"""The built-in bench: deterministic, split by subject, verifiable."""

from __future__ import annotations

import numpy as np
import pytest

from medvista_ray.config import BenchConfig
from medvista_ray.errors import ConfigError
from medvista_ray.tasks.bench.families import SETS
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tasks.bench.subjects import SUBJECTS, split_of_concept
from medvista_ray.tasks.graders import grade
from medvista_ray.types import Split, Task

pytestmark = pytest.mark.assets
SIZES = {"num_train": 70, "num_validation": 14, "num_test": 70}


@pytest.fixture(scope="module")
def bench() -> MedVistaBench:
    return MedVistaBench(BenchConfig(seed=3, **SIZES))


def _plates(split: Split) -> set[str]:
    return {plate for subject in SUBJECTS if subject.split == split for plate in subject.plates}


def test_every_subject_is_in_one_split_and_no_picture_in_two() -> None:
    assert len({subject.id for subject in SUBJECTS}) == len(SUBJECTS)
    plates = [plate for subject in SUBJECTS for plate in subject.plates]
    assert len(plates) == len(set(plates))


@pytest.mark.parametrize("split", list(Split))
def test_tasks_show_only_pictures_and_concepts_of_their_split(bench: MedVistaBench, split: Split) -> None:
    tasks = bench.tasks(split)
    assert tasks
    assert {task.recipe["plate"] for task in tasks} <= _plates(split)
    concepts = [task for task in tasks if task.family == "concept_code"]
    assert all(split_of_concept(task.answer) == split for task in concepts)


def test_test_tasks_cover_every_family_and_four_modalities(bench: MedVistaBench) -> None:
    tasks = bench.tasks(Split.TEST)
    assert {task.family for task in tasks} == set(SETS["core"])
    assert len({task.modality for task in tasks} - {"text"}) >= 4


def test_the_same_seed_gives_the_same_tasks_and_pixels_and_another_seed_others(bench: MedVistaBench) -> None:
    again = MedVistaBench(BenchConfig(seed=3, **SIZES))
    other = MedVistaBench(BenchConfig(seed=4, **SIZES))
    assert again.tasks(Split.TEST) == bench.tasks(Split.TEST)
    assert other.tasks(Split.TEST) != bench.tasks(Split.TEST)
    task = bench.tasks(Split.TEST)[0]
    np.testing.assert_array_equal(bench.open(task)[0].pixels, again.open(task)[0].pixels)


def test_the_gold_answer_is_right_and_regions_are_boxes(bench: MedVistaBench) -> None:
    for task in bench.tasks(Split.TEST):
        assert grade(task, task.answer), task.id
        assert all(0 <= x0 < x1 <= 1000 and 0 <= y0 < y1 <= 1000 for x0, y0, x1, y1 in task.regions), task.id


def test_pictures_open_and_are_not_blank(bench: MedVistaBench) -> None:
    families: dict[str, Task] = {task.family: task for task in bench.tasks(Split.TEST)}
    for task in families.values():
        (image,) = bench.open(task)
        assert np.ptp(image.display()) > 30, task.id


def test_an_unknown_family_is_told_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"bench.families: 'lesion_sise'.*lesion_size"):
        MedVistaBench(BenchConfig(families=("lesion_sise",)))
