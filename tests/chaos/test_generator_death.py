"""A generator's process is killed in mid-run: nothing is lost, nothing is trained twice, the books balance."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest
import ray

from medvista_ray.config import TrainConfig
from tests.scripted_actors import ScriptedGeneratorActor, ScriptedLearnerActor
from tests.scripted_flow import make_tasks

pytestmark = pytest.mark.usefixtures("local_ray")


@pytest.mark.parametrize("num_generators", [1, 2])
def test_a_killed_generators_groups_are_sampled_again(tmp_path: Path, num_generators: int) -> None:
    from actors.coordinator import CoordinatorActor

    config = TrainConfig.model_validate(
        {"grpo": {"groups_per_step": 4, "group_size": 2}, "flow": {"eta": 1, "max_running_groups": 8}}
    )
    names = [f"generator-{i}" for i in range(num_generators)]
    generators = {name: ScriptedGeneratorActor.remote(name, group_s=0.4) for name in names}
    learner = ScriptedLearnerActor.remote()
    coordinator = CoordinatorActor.remote(config, make_tasks(50), generators, learner, str(tmp_path))
    victim = ray.get(generators["generator-0"].pid.remote(), timeout=60)
    run = coordinator.run.remote(20)
    until_s = time.monotonic() + 60
    while True:
        status = ray.get(coordinator.status.remote(), timeout=20)
        if status["step"] >= 3 and status["counts"]["num_running"] > 0:
            break
        assert time.monotonic() < until_s
        time.sleep(0.05)
    os.kill(victim, signal.SIGKILL)
    summary = ray.get(run, timeout=120)
    trained = ray.get(learner.trained.remote(), timeout=20)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for actor in [coordinator, *generators.values(), learner]:
        ray.kill(actor)
    assert summary["num_generator_faults"] >= 1
    assert len(trained) == len(set(trained)) == 80
    assert summary["counts"]["num_failed"] == 0
    assert summary["counts"]["num_submitted"] == 80
    for record in records:
        done = record["num_trained"] + record["num_filtered"] + record["num_failed"]
        in_flight = record["num_waiting"] + record["num_running"] + record["num_ready"]
        assert record["num_submitted"] == done + in_flight
        assert record["staleness_max"] <= 1
