"""A run on a simulated cluster of three nodes that loses one of two generator nodes and gets another; prints what happened.

A program of its own, since a cluster cannot stand beside the test session's Ray. Called by test_node_loss.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import ray
from ray.cluster_utils import Cluster

from medvista_ray.config import TrainConfig
from tests.scripted_actors import ScriptedGeneratorActor, ScriptedLearnerActor
from tests.scripted_flow import make_tasks

MAX_STEPS, BATCH, ETA = 100_000, 4, 2
TRUNK, BRANCH = {"role": "trunk"}, {"role": "generator"}
NODE = {"object_store_memory": 128 << 20, "include_dashboard": False, "dashboard_port": None}  # None: any free port


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = 240.0) -> None:
    until_s = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until_s:
            raise TimeoutError(what)
        time.sleep(0.1)


def node_of(actor: Any) -> str:
    return ray.get(actor.__ray_call__.remote(lambda _: ray.get_runtime_context().get_node_id()), timeout=120)


def main(run_dir: str) -> dict[str, Any]:
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "labels": TRUNK, **NODE})
    for _ in range(2):
        cluster.add_node(num_cpus=2, labels=BRANCH, **NODE)
    ray.init(address=cluster.address, namespace="three-nodes", log_to_driver=False)
    try:
        return run(cluster, run_dir)
    finally:
        ray.shutdown()
        cluster.shutdown()


def run(cluster: Cluster, run_dir: str) -> dict[str, Any]:
    from actors.coordinator import CoordinatorActor

    config = TrainConfig.model_validate(
        {"grpo": {"groups_per_step": BATCH, "group_size": 2}, "flow": {"eta": ETA, "max_running_groups": 12}}
    )
    placed = ScriptedGeneratorActor.options(num_cpus=1, label_selector=BRANCH)
    generators = {f"generator-{i}": placed.remote(f"generator-{i}", group_s=0.4, filtered_share=0.1) for i in range(4)}
    learner = ScriptedLearnerActor.options(label_selector=TRUNK).remote(0.2)
    coordinator = CoordinatorActor.options(label_selector=TRUNK).remote(config, make_tasks(50), generators, learner, run_dir)
    homes = {name: node_of(actor) for name, actor in generators.items()}
    trunk = {node_of(learner), node_of(coordinator)}
    running = coordinator.run.remote(MAX_STEPS)

    def status() -> dict[str, Any]:
        return ray.get(coordinator.status.remote(), timeout=60)

    def is_current(name: str, now: dict[str, Any]) -> bool:
        return now["versions"].get(name, -1) >= now["version"] - 1 > 1

    victim = homes["generator-0"]
    lost = sorted(name for name, home in homes.items() if home == victim)
    wait_for("steps", lambda: status()["step"] >= 5)
    wait_for("work on the victim", lambda: any(status()["doing"][name] == "generating" for name in lost))
    (node,) = [node for node in cluster.worker_nodes if node.node_id == victim]
    cluster.remove_node(node)
    at_loss = status()["step"]
    wait_for("faults", lambda: status()["num_generator_faults"] >= len(lost))
    wait_for("steps without the node", lambda: status()["step"] >= at_loss + 5)
    without = status()
    cluster.add_node(num_cpus=2, labels=BRANCH, **NODE)
    wait_for("the lost generators' return", lambda: all(is_current(name, status()) for name in lost))
    at_return = status()["step"]
    wait_for("steps with the node", lambda: status()["step"] >= at_return + 5)
    ray.get(coordinator.stop.remote(), timeout=60)
    summary = ray.get(running, timeout=240)
    return {
        "num_homes": len(set(homes.values())),
        "trunk_apart": trunk.isdisjoint(homes.values()),
        "lost": lost,
        "doing_without": {name: without["doing"][name] for name in lost},
        "new_homes": len({node_of(generators[name]) for name in lost} - set(homes.values())),
        "trained": ray.get(learner.trained.remote(), timeout=60),
        "summary": summary,
        "records": [json.loads(line) for line in (Path(run_dir) / "metrics.jsonl").read_text().splitlines()],
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[1]).write_text(json.dumps(main(folder)))
