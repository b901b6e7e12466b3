"""The order of the training tasks: every task in its turn, families by what their groups teach, and exact resumption."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from medvista_ray.errors import ConfigError, RunFolderError
from medvista_ray.flow.sampler import FamilySampler, TaskSampler, make_sampler
from medvista_ray.types import Task
from tests.scripted_flow import make_tasks

TASKS = make_tasks(10)


def test_the_sampler_asks_every_task_once_per_epoch_in_a_new_order() -> None:
    sampler = TaskSampler(TASKS, seed=3)
    epochs = [[sampler.next().id for _ in TASKS] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(task.id for task in TASKS)
    assert epochs[0] != epochs[1]
    assert [TaskSampler(TASKS, seed=4).next().id for _ in TASKS] != epochs[0]


def test_the_sampler_resumes_in_mid_epoch() -> None:
    sampler = TaskSampler(TASKS, seed=3)
    for _ in range(17):
        sampler.next()
    other = TaskSampler(TASKS, seed=3)
    other.restore(json.loads(json.dumps(sampler.to_json())))
    assert [other.next().id for _ in range(20)] == [sampler.next().id for _ in range(20)]
    with pytest.raises(RunFolderError, match="another seed"):
        TaskSampler(TASKS, seed=4).restore(sampler.to_json())
    with pytest.raises(ConfigError, match="no tasks"):
        TaskSampler([], seed=0)


def of_families(**nums: int) -> list[Task]:
    tasks = make_tasks(sum(nums.values()))
    names = [family for family, num in nums.items() for _ in range(num)]
    return [replace(task, family=family) for task, family in zip(tasks, names, strict=True)]


def test_families_whose_groups_teach_nothing_are_asked_less_but_never_dropped() -> None:
    sampler = FamilySampler(of_families(useful=20, solved=20), seed=1)
    drawn: list[str] = []
    for _ in range(2000):
        task = sampler.next()
        sampler.report(task, task.family == "useful")
        drawn.append(task.family)
    late = drawn[200:]
    assert sampler.yields()["useful"] > 0.95
    assert sampler.yields()["solved"] < 0.05
    # Shares follow yield + 0.1: 1.1 to 0.1.
    assert late.count("solved") / len(late) == pytest.approx(0.1 / 1.2, abs=0.03)


def test_a_family_that_teaches_again_is_asked_more_again() -> None:
    sampler = FamilySampler(of_families(steady=20, late=20), seed=1)
    for _ in range(300):
        task = sampler.next()
        sampler.report(task, task.family == "steady")
    for _ in range(600):
        sampler.report(sampler.next(), True)
    assert sampler.yields()["late"] > 0.9


def test_a_familys_tasks_come_once_per_epoch_and_shares_start_with_the_split() -> None:
    tasks = of_families(many=30, few=10)
    sampler = FamilySampler(tasks, seed=2)
    drawn = [sampler.next() for _ in range(400)]
    few = [task.id for task in drawn if task.family == "few"]
    assert len(few) / len(drawn) == pytest.approx(0.25, abs=0.07)
    assert len(set(few[:10])) == 10


def test_a_sampler_by_yield_resumes_exactly_and_only_its_own_state() -> None:
    tasks = of_families(a=7, b=5)
    sampler = make_sampler("by_yield", tasks, 3)
    for number in range(25):
        sampler.report(sampler.next(), number % 3 == 0)
    other = make_sampler("by_yield", tasks, 3)
    other.restore(json.loads(json.dumps(sampler.to_json())))
    assert [other.next().id for _ in range(20)] == [sampler.next().id for _ in range(20)]
    with pytest.raises(RunFolderError, match=r"flow\.sampling"):
        make_sampler("by_yield", tasks, 3).restore(make_sampler("uniform", tasks, 3).to_json())
    with pytest.raises(RunFolderError, match=r"flow\.sampling"):
        make_sampler("uniform", tasks, 3).restore(sampler.to_json())
    with pytest.raises(ConfigError, match="no tasks"):
        make_sampler("by_yield", [], 0)
