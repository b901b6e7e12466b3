"""The coordinator actor over real Ray actors; generators and learner are scripted."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from ray.exceptions import ObjectLostError

from medvista_ray.config import TrainConfig
from medvista_ray.errors import NotReadyError
from medvista_ray.metrics import undeclared
from medvista_ray.reports.trajectory import read_episodes
from medvista_ray.types import Group
from tests.scripted_actors import ScriptedGeneratorActor, ScriptedLearnerActor, TooBigActor
from tests.scripted_flow import make_episode, make_tasks

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = TrainConfig.model_validate(
    {
        "grpo": {"groups_per_step": 4, "group_size": 2},
        "flow": {"eta": 1, "max_running_groups": 8, "checkpoint_every": 5, "max_group_retries": 3},
    }
)


def start(run_dir: Path, train_s: float = 0.1, resume: dict[str, Any] | None = None, **script: Any) -> tuple[Any, Any, Any]:
    """Coordinator, generators by name, learner."""
    from actors.coordinator import CoordinatorActor

    generators = {f"generator-{i}": ScriptedGeneratorActor.remote(f"generator-{i}", **script) for i in range(2)}
    learner = ScriptedLearnerActor.remote(train_s)
    coordinator = CoordinatorActor.remote(CONFIG, make_tasks(50), generators, learner, str(run_dir), 1, resume)
    return coordinator, generators, learner


def end(coordinator: Any, generators: dict[str, Any], learner: Any) -> None:
    for actor in [coordinator, *generators.values(), learner]:
        ray.kill(actor)


def assert_books_balance(counts: dict[str, float]) -> None:
    done = counts["num_trained"] + counts["num_filtered"] + counts["num_failed"]
    assert counts["num_submitted"] == done + counts["num_waiting"] + counts["num_running"] + counts["num_ready"]


def wait_until(coordinator: Any, condition: Callable[[dict[str, Any]], bool], timeout_s: float = 60.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition(status := ray.get(coordinator.status.remote(), timeout=20)):
        assert time.monotonic() < until_s, f"did not come true: {status}"
        time.sleep(0.05)


def is_overlapping(status: dict[str, Any]) -> bool:
    """The learner trains a batch of 4, and more groups are in flight."""
    counts = status["counts"]
    return status["doing"]["learner"] == "training" and counts["num_running"] + counts["num_ready"] > 4


def test_a_run_overlaps_records_and_checkpoints(tmp_path: Path) -> None:
    coordinator, generators, learner = start(tmp_path, group_s=0.2, filtered_share=0.3)
    summary = ray.get(coordinator.run.remote(12), timeout=120)
    trained = ray.get(learner.trained.remote())
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, 13))
    for record in records:
        assert undeclared(record) == []
        assert_books_balance(record)
        assert record["staleness_max"] <= 1
    assert len(trained) == len(set(trained)) == 48
    assert max(summary["staleness_histogram"]) == 1, "generation went on while the learner trained"
    assert sum(summary["staleness_histogram"].values()) == 48 * 2 * 2
    assert summary["version"] == 13
    assert summary["counts"]["num_filtered"] > 0
    assert (tmp_path / "checkpoints" / "step-000012" / "extra.json").is_file()
    assert list((tmp_path / "tensorboard").iterdir())
    logged = list(read_episodes(tmp_path / "episodes"))
    assert len(logged) == 2 * (48 + summary["counts"]["num_filtered"])
    end(coordinator, generators, learner)


def test_a_stopped_run_resumes_with_the_groups_that_were_in_flight(tmp_path: Path) -> None:
    coordinator, generators, learner = start(tmp_path, train_s=1.0, group_s=0.3)
    run = coordinator.run.remote(1000)
    wait_until(coordinator, lambda status: status["step"] >= 2 and is_overlapping(status))
    ray.get(coordinator.stop.remote(), timeout=20)
    summary = ray.get(run, timeout=60)
    before = ray.get(learner.trained.remote())
    end(coordinator, generators, learner)
    assert_books_balance(summary["counts"])
    path = tmp_path / "checkpoints" / f"step-{summary['step']:06d}" / "extra.json"
    state = json.loads(path.read_text())
    in_flight = {item["id"] for item in state["groups"]["in_flight"]}
    assert in_flight
    assert sorted(before) == state["groups"]["trained_ids"]

    coordinator, generators, learner = start(tmp_path, resume=state)
    again = ray.get(coordinator.run.remote(summary["step"] + 4), timeout=60)
    after = set(ray.get(learner.trained.remote()))
    end(coordinator, generators, learner)
    assert_books_balance(again["counts"])
    assert again["step"] == summary["step"] + 4
    assert not after & set(before)
    assert in_flight <= after


def test_status_answers_while_the_learner_works(tmp_path: Path) -> None:
    coordinator, generators, learner = start(tmp_path, train_s=3.0)
    run = coordinator.run.remote(2)
    wait_until(coordinator, is_overlapping)
    began_s = time.monotonic()
    ray.get(coordinator.status.remote(), timeout=20)
    assert time.monotonic() - began_s < 1.5
    assert ray.get(run, timeout=60)["step"] == 2
    end(coordinator, generators, learner)


def test_an_evaluation_gives_each_task_one_episode_in_order(tmp_path: Path) -> None:
    from actors.evaluator import evaluate

    generators = [ScriptedGeneratorActor.remote(f"generator-{i}") for i in range(2)]
    manifest = json.dumps({"version": 7})
    ray.get([generator.load_version.remote(manifest) for generator in generators])
    tasks = make_tasks(30)
    call = evaluate(generators, tasks, with_tools=True, temperature=0.0, concurrency=8, manifest=manifest)
    episodes = asyncio.run(call)
    assert [episode.task.id for episode in episodes] == [task.id for task in tasks]
    for generator in generators:
        ray.kill(generator)


def test_what_is_missing_is_named_when_an_actor_does_not_come_up() -> None:
    from actors.supervisor import wait_ready

    fits, too_big = ScriptedLearnerActor.remote(), TooBigActor.remote()
    ray.get(fits.ready.remote(), timeout=60)
    with pytest.raises(NotReadyError, match=r"not ready after 1 s: generator-9; free resources: .*CPU"):
        wait_ready({"learner": fits, "generator-9": too_big}, timeout_s=1.0)
    for actor in (fits, too_big):
        ray.kill(actor)


def is_lost_within(seconds: float, ref: Any, asked: Any) -> bool:
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        try:
            ray.get(asked.__ray_call__.remote(lambda *_: time.sleep(0.1), ref), timeout=20)
        except ObjectLostError:
            return True
    return False


def test_groups_whose_stored_copies_are_lost_are_sent_again() -> None:
    from actors.handles import RayLearner

    (task,) = make_tasks(1)
    groups = [Group(id=i, episodes=[make_episode(task, [1], 0.5)], version_admitted=1) for i in range(3)]
    learner: Any = ScriptedLearnerActor.remote(0.0)
    owner: Any = ScriptedLearnerActor.remote(0.0)
    (lost,) = ray.get(owner.__ray_call__.remote(lambda _, group: [ray.put(group)], groups[1]), timeout=20)
    ray.kill(owner)  # what it stored goes with it, within a second
    assert is_lost_within(20.0, lost, learner)
    groups[0].stored, groups[1].stored = ray.put(groups[0]), lost
    assert asyncio.run(RayLearner(learner).train(groups)) == {"loss": 0.1}
    assert ray.get(learner.trained.remote(), timeout=20) == [0, 1, 2], "each of them once"
    ray.kill(learner)
