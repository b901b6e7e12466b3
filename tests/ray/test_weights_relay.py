"""The object-store transport under Ray: the real learner publishes, a node fetches once, what is gone or damaged is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
from safetensors.torch import load_file

from actors import names
from actors.weights import landed
from medvista_ray.config import TrainConfig
from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import Held, Manifest
from tests.unit.tiny_policies import save_random_policy

pytestmark = pytest.mark.usefixtures("local_ray")

CONFIG = TrainConfig.model_validate({"weights": {"transport": "object_store", "checksum": True, "bucket_mib": 1}})


@ray.remote(num_cpus=0)
class Reader:
    """A generator's place: fetches as one does, and reads what an engine would."""

    async def load(self, manifest: str) -> tuple[str, int, float]:
        """Path on this node, number of tensors, sum of all weights."""
        local = await landed(Manifest.from_json(manifest))
        held = Held(local)
        tensors = load_file(held.path)
        held.close()
        return local.path, len(tensors), float(sum(t.double().sum() for t in tensors.values()))


@pytest.fixture(scope="module")
def learner(tmp_path_factory: pytest.TempPathFactory, local_ray: None) -> Iterator[Any]:
    from actors.learner import LearnerActor

    folder = save_random_policy("internvl", tmp_path_factory.mktemp("policy") / "p")
    remote: Any = LearnerActor
    actor = remote.options(num_cpus=0, name=names.LEARNER).remote(CONFIG, str(folder), f"test-{time.time_ns()}")
    ray.get(actor.ready.remote(), timeout=120)
    yield actor
    ray.kill(actor)


def test_readers_of_a_node_share_one_copy_of_each_version(learner: Any) -> None:
    readers = [Reader.remote() for _ in range(2)]
    paths = []
    for version in range(1, 5):
        manifest = ray.get(learner.publish.remote(version), timeout=60)
        assert Manifest.from_json(manifest).path == ""
        found = ray.get([reader.load.remote(manifest) for reader in readers], timeout=60)
        assert found[0] == found[1]
        assert found[0][1] == Manifest.from_json(manifest).num_tensors
        paths.append(found[0][0])
    assert len(set(paths)) == 2, "the relay's memory is used again"


def test_a_version_that_left_the_store_or_was_altered_on_its_way_is_refused(learner: Any) -> None:
    first, *_, last = [ray.get(learner.publish.remote(version), timeout=60) for version in range(5, 9)]
    reader = Reader.remote()
    with pytest.raises(WeightUpdateError, match="version 5 is not in the store"):
        ray.get(reader.load.remote(first), timeout=60)
    manifest = Manifest.from_json(last)
    altered = manifest.model_copy(update={"checksums": ("00000000", *manifest.checksums[1:])})
    with pytest.raises(WeightUpdateError, match="bucket 0 has checksum"):
        ray.get(reader.load.remote(altered.to_json()), timeout=60)
    assert ray.get(reader.load.remote(last), timeout=60)[1] == manifest.num_tensors


def test_a_relay_that_died_is_replaced_and_a_dead_learner_named(learner: Any) -> None:
    manifest = ray.get(learner.publish.remote(9), timeout=60)
    first, second = Reader.remote(), Reader.remote()
    path = ray.get(first.load.remote(manifest), timeout=60)[0]
    ray.kill(first)  # the relay that it made goes with it
    until_s = time.monotonic() + 30
    while Path(path).exists() and time.monotonic() < until_s:
        time.sleep(0.1)
    while True:
        try:
            assert ray.get(second.load.remote(manifest), timeout=60)[1] == Manifest.from_json(manifest).num_tensors
            break
        except WeightUpdateError:
            assert time.monotonic() < until_s
    ray.kill(learner)
    with pytest.raises(WeightUpdateError, match="version 9 did not reach this node"):
        ray.get(second.load.remote(manifest), timeout=60)
