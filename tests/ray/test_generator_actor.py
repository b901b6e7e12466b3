"""The generator actor with a real engine under Ray: groups, weights in flight, health, and what a restart serves."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from actors.evaluator import evaluate
from medvista_ray.config import TrainConfig
from medvista_ray.errors import MedVistaError
from medvista_ray.models.policy import load_policy
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import AnswerKind, EpisodeStatus, Group, MedImage, Split, Task
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.shared_memory import SharedMemoryPublisher
from tests.random_policy import random_policy

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("local_ray")]

GROUP = 4
CONFIG = TrainConfig.model_validate(
    {
        "bench": {"source": "tests.ray.test_generator_actor:NoiseSource"},
        "rollout": {"max_calls": 2, "max_turn_tokens": 24},
        "generator": {"max_num_seqs": 16, "kv_cache_mib": 128},
        "evaluation": {"concurrency": 4},
    }
)


class NoiseSource:
    """Pictures of noise: the random policy of these tests sees nothing in any."""

    def __init__(self, config: Any) -> None:
        self.config = config

    def tasks(self, split: Split) -> list[Task]:
        return [make_task(i, split) for i in range(3)]

    def open(self, task: Task) -> list[MedImage]:
        pixels = torch.rand(96, 96, generator=torch.Generator().manual_seed(int(task.id))).numpy()
        return [MedImage(pixels, "CT")]


class Lab:
    """The actor, and a learner's worth of weights."""

    def __init__(self, folder: Path) -> None:
        from actors.generator import GeneratorActor

        self.policy = load_policy(random_policy(folder))
        self.publisher = SharedMemoryPublisher(f"generator-test-{os.getpid()}")
        self.actor: Any = GeneratorActor.options(name="generator-0", num_cpus=1, max_restarts=-1).remote(
            0, CONFIG, str(folder), make_client, self.publish(1).to_json()
        )

    def publish(self, version: int) -> Manifest:
        with torch.no_grad():
            for parameter in self.policy.model.parameters():
                parameter.mul_(1.01)
        return self.publisher.publish(self.policy.model.named_parameters(), version)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Lab]:
    import ray

    lab = Lab(tmp_path_factory.mktemp("policy"))
    assert ray.get(lab.actor.health.remote(), timeout=60), "health answers while the engine starts"
    assert ray.get(lab.actor.ready.remote(), timeout=240) == 1
    yield lab
    ray.get(lab.actor.shutdown.remote(), timeout=60)
    ray.kill(lab.actor)
    lab.publisher.close()


def test_a_group_comes_back_whole_scored_and_with_the_version_that_sampled_it(lab: Lab) -> None:
    import ray

    group: Group = ray.get(lab.actor.run_group.remote(7, make_task(0, Split.TRAIN), GROUP), timeout=120)
    assert group.id == 7
    assert len(group.episodes) == GROUP
    for episode in group.episodes:
        assert episode.status is not EpisodeStatus.FAILED
        assert episode.reward_parts
        assert set(episode.versions[episode.loss_mask].tolist()) == {1}
        assert (episode.logprobs[episode.loss_mask] < 0).all()


def test_weights_load_and_health_answers_while_groups_run(lab: Lab) -> None:
    import ray

    groups = [lab.actor.run_group.remote(i, make_task(i % 3, Split.TRAIN), GROUP) for i in range(6)]
    times = ray.get(lab.actor.load_version.remote(lab.publish(2).to_json()), timeout=60)
    begin = time.perf_counter()
    assert ray.get(lab.actor.health.remote(), timeout=20)
    health_s = time.perf_counter() - begin
    still_running = len(ray.wait(groups, num_returns=len(groups), timeout=0)[1])
    stats = ray.get(lab.actor.stats.remote(), timeout=20)
    episodes = [e for group in ray.get(groups, timeout=120) for e in group.episodes]
    assert still_running > 0
    assert health_s < 5.0
    assert 0 < times["update_s"] <= times["pause_s"]
    assert stats["version"] == 2
    assert stats["name"] == "Generator(0)"
    assert 0 < stats["busy_s"] <= stats["up_s"]
    assert {v for e in episodes for v in e.versions[e.loss_mask].tolist()} <= {1, 2}
    assert any(2 in e.versions for e in episodes)


def test_a_refused_version_reaches_the_caller_as_a_weight_update_error(lab: Lab) -> None:
    import ray

    from medvista_ray.errors import WeightUpdateError

    absent = Manifest(version=9, path="/dev/shm/none", num_tensors=1, num_bytes=1)
    with pytest.raises(WeightUpdateError, match="cannot be read"):
        ray.get(lab.actor.load_version.remote(absent.to_json()), timeout=60)
    assert ray.get(lab.actor.stats.remote(), timeout=20)["version"] == 2


def test_evaluation_is_greedy_in_order_and_repeats_itself(lab: Lab) -> None:
    import ray

    tasks = [make_task(i, Split.TEST) for i in range(3)]
    first, second = ray.get([lab.actor.run_episodes.remote(tasks, False, 0.0) for _ in range(2)], timeout=240)
    assert [e.task.id for e in first] == [t.id for t in tasks]
    assert [e.token_ids.tolist() for e in first] == [e.token_ids.tolist() for e in second]


def test_a_killed_generator_takes_its_engine_along_and_serves_only_what_it_is_told_to_load(lab: Lab) -> None:
    import ray

    pid = ray.get(lab.actor.pid.remote(), timeout=20)
    engines = ray.get(lab.actor.stats.remote(), timeout=20)["pids"]
    assert engines
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(psutil.pid_exists(engine) for engine in engines), 20)
    group = wait_for_restart(lab).run_group.remote(1, make_task(0, Split.TRAIN), GROUP)
    ready = lab.actor.ready.remote()
    ray.get(ready, timeout=240)
    assert ray.wait([group], timeout=1)[0] == [], "a restarted generator served before it was told what to load"
    ray.get(lab.actor.load_version.remote(lab.publish(3).to_json()), timeout=60)
    episodes = ray.get(group, timeout=120).episodes
    assert {v for e in episodes for v in e.versions[e.loss_mask].tolist()} == {3}


def test_a_load_into_an_engine_that_died_fails_soon(lab: Lab) -> None:
    import ray

    (engine,) = ray.get(lab.actor.stats.remote(), timeout=20)["pids"]
    os.kill(engine, signal.SIGKILL)
    with pytest.raises(MedVistaError, match="died before it had loaded version 4"):
        ray.get(lab.actor.load_version.remote(lab.publish(4).to_json()), timeout=60)
    assert not ray.get(lab.actor.health.remote(), timeout=20)


def test_an_evaluation_brings_a_generator_back_whose_engine_died(lab: Lab) -> None:
    import ray

    for engine in ray.get(lab.actor.stats.remote(), timeout=20)["pids"]:
        with suppress(ProcessLookupError):
            os.kill(engine, signal.SIGKILL)
    tasks = [make_task(i, Split.TEST) for i in range(3)]
    manifest = lab.publish(5).to_json()
    episodes = asyncio.run(evaluate([lab.actor], tasks, with_tools=False, temperature=0.0, concurrency=2, manifest=manifest))
    assert [e.task.id for e in episodes] == [t.id for t in tasks]
    assert {v for e in episodes for v in e.versions[e.loss_mask].tolist()} == {5}


def make_task(number: int, split: Split) -> Task:
    return Task(
        id=str(number), source="noise", family="f", split=split, subject=str(number), modality="CT",
        question="Is the left half brighter?", answer="yes", kind=AnswerKind.CHOICE, choices=("yes", "no"),
    )  # fmt: skip


def make_client() -> LocalToolClient:
    return LocalToolClient(["zoom_in"])


def wait_for_restart(lab: Lab) -> Any:
    """The actor, once its new process answers."""
    import ray
    from ray.exceptions import RayActorError

    until_s = time.monotonic() + 90
    while True:
        try:
            ray.get(lab.actor.health.remote(), timeout=30)
            return lab.actor
        except RayActorError:
            assert time.monotonic() < until_s
            time.sleep(0.3)


def wait_until(condition: Any, timeout_s: float) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < until_s
        time.sleep(0.2)
