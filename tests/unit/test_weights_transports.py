"""The transports that run without a GPU: whole versions, never overwritten, refused when damaged, nothing left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from medvista_ray.config import TrainConfig, WeightsConfig, load_config
from medvista_ray.errors import ConfigError, WeightUpdateError
from medvista_ray.weights.manifest import Held, Manifest
from medvista_ray.weights.object_store import ObjectStorePublisher, Relay
from medvista_ray.weights.reading import SegmentReader
from medvista_ray.weights.segment import MAX_SEGMENTS
from medvista_ray.weights.shared_memory import SharedMemoryPublisher
from medvista_ray.weights.transport import TRANSPORTS

CHECKED = WeightsConfig(checksum=True, bucket_mib=1)
Publish = Callable[[dict[str, torch.Tensor], int], Manifest]


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    """More than two buckets, types of three widths, narrow before wide."""
    return {
        "flag": torch.ones(3, dtype=torch.bool),
        "b": torch.full((3,), value, dtype=torch.bfloat16),
        "large": torch.full((1 << 19,), value),
        "scalar": torch.tensor(value),
        "a": torch.full((4, 8), value),
    }


class Stored:
    """The two CPU transports behind one call, as an engine's node sees them; the store is a dictionary."""

    def __init__(self, transport: str, config: WeightsConfig = CHECKED) -> None:
        self.store: dict[int, Any] = {}
        self.relay = Relay("run") if transport == "object_store" else None
        self.publisher: Any = TRANSPORTS.load(transport)("run", config, put=self._put)

    def __call__(self, named: dict[str, torch.Tensor], version: int) -> Manifest:
        manifest = self.publisher.publish(named.items(), version)
        if self.relay is None:
            return manifest
        return self.relay.land(manifest, lambda: (self.store[key] for key in self.publisher.stored(version)))

    def close(self) -> None:
        self.publisher.close()
        if self.relay:
            self.relay.close()

    def _put(self, bucket: Any) -> int:
        self.store[len(self.store)] = [piece.copy() for piece in bucket]
        return len(self.store) - 1


@pytest.fixture(params=["shared_memory", "object_store"])
def stored(request: pytest.FixtureRequest) -> Iterator[Stored]:
    stored = Stored(request.param)
    yield stored
    stored.close()


def test_a_published_version_reads_back_bit_for_bit(stored: Stored) -> None:
    manifest = stored(tensors(2.5), 7)
    manifest.check()
    found = load_file(manifest.path)
    assert manifest.version == 7
    assert manifest.num_tensors == len(tensors())
    assert len(manifest.checksums) == 3
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors(2.5).items())


def test_views_and_parameters_are_published_by_value(stored: Stored) -> None:
    parameter = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    manifest = stored({"w": parameter, "t": parameter.T}, 1)
    with torch.no_grad():
        parameter.zero_()
    found = load_file(manifest.path)
    assert torch.equal(found["w"], torch.arange(12.0).reshape(3, 4))
    assert torch.equal(found["t"], torch.arange(12.0).reshape(3, 4).T)


def test_tensors_lie_aligned_and_keep_their_order_within_a_type(stored: Stored) -> None:
    manifest = stored(tensors(), 1)
    with safe_open(manifest.path, "pt") as file:
        pointers = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert all(t.data_ptr() % t.element_size() == 0 for t in pointers.values())


@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_a_flipped_byte_is_refused_and_the_bucket_named(stored: Stored, bucket: int) -> None:
    manifest = stored(tensors(), 3)
    with open(manifest.path, "r+b", buffering=0) as file:  # as a stray write into shared memory would
        position = min((bucket << 20) + 999, manifest.num_bytes - 1)
        file.seek(position)
        old = file.read(1)[0]
        file.seek(position)
        file.write(bytes([old ^ 1]))
    with pytest.raises(WeightUpdateError, match=f"version 3: .* bucket {bucket} has checksum"):
        manifest.check()


def test_without_checksums_nothing_is_read_before_the_engine_does() -> None:
    manifest = Stored("shared_memory", WeightsConfig())(tensors(), 3)
    assert manifest.checksums == ()


def test_memory_is_used_again_by_the_version_after_next_but_not_while_an_engine_holds_it(stored: Stored) -> None:
    held = Held(stored(tensors(1.0), 1))
    later = [stored(tensors(float(v)), v) for v in range(2, 7)]
    assert torch.equal(load_file(held.path)["large"], tensors(1.0)["large"]), "a held version was overwritten"
    assert len({manifest.path for manifest in later}) == 2
    assert torch.equal(load_file(later[-1].path)["large"], tensors(6.0)["large"])
    held.close()


def test_an_outdated_manifest_is_refused_though_its_memory_holds_other_weights_of_the_same_size(stored: Stored) -> None:
    outdated = stored(tensors(1.0), 1)
    while stored(tensors(2.0), 2).path != outdated.path:
        pass
    with pytest.raises(WeightUpdateError, match="later version took its place"):
        outdated.check()


def test_a_reader_sees_every_version_through_mappings_that_it_makes_once(stored: Stored) -> None:
    reader, maps = SegmentReader(), list[set[int]]()
    for version in range(1, 9):
        held = Held(stored(tensors(float(version)), version))
        found = dict(reader.read(Path(held.path)))
        held.close()
        assert found.keys() == tensors().keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in tensors(float(version)).items())
        assert all(found[name].dtype == tensor.dtype for name, tensor in tensors().items())
        maps.append(mapped_segments())
    assert 0 < len(maps[-1]) <= MAX_SEGMENTS
    assert maps[3] == maps[-1], "a segment was mapped again"
    found.clear()
    reader.close()
    stored.close()
    assert not mapped_segments(), "mappings stay behind"


def test_a_reader_forgets_the_segments_of_a_publisher_that_is_gone() -> None:
    reader = SegmentReader()
    for _ in range(MAX_SEGMENTS + 2):  # as many learners that were restarted
        publisher = Stored("shared_memory")
        held = Held(publisher(tensors(), 1))
        assert "large" in dict(reader.read(Path(held.path)))
        held.close()
        publisher.close()
    assert len(mapped_segments()) == MAX_SEGMENTS
    reader.close()


def mapped_segments() -> set[int]:
    """Addresses at which this process has segments mapped to be read."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return {int(line.split("-")[0], 16) for line in lines if "memfd:medvista-run" in line and " r--s " in line}


def test_what_is_held_outlives_its_publisher(stored: Stored) -> None:
    manifest = stored(tensors(4.0), 1)
    held = Held(manifest)
    stored.close()
    assert torch.equal(load_file(held.path)["large"], tensors(4.0)["large"])
    with pytest.raises(WeightUpdateError, match="cannot be read"):
        manifest.check()
    held.close()
    held.close()


def test_publishing_goes_on_after_a_version_that_could_not_be_written(stored: Stored) -> None:
    class Broken(torch.Tensor):
        def cpu(self, *_: Any) -> Any:  # type: ignore[override]
            raise RuntimeError("the device is gone")

    good = stored(tensors(1.0), 1)
    bad = {**tensors(2.0), "z": torch.zeros(2, 2).as_subclass(Broken)}
    with pytest.raises(RuntimeError, match="device is gone"):
        stored(bad, 2)
    good.check()
    stored(tensors(3.0), 3).check()


def test_too_little_memory_is_named_before_anything_is_written(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(1000))
    with pytest.raises(WeightUpdateError, match="do not fit"):
        stored(tensors(), 0)


@pytest.mark.parametrize(
    ("named", "message"),
    [({}, "no tensors"), ({"c": torch.zeros(2, dtype=torch.complex64)}, "c has the type complex64")],
)
def test_what_cannot_be_published_is_named(stored: Stored, named: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(WeightUpdateError, match=message):
        stored(named, 0)


def test_a_killed_publisher_leaves_no_memory_behind(root: Path) -> None:
    """It has no name in /dev/shm, so the kernel takes it back, however the process ended."""
    code = (
        "import numpy, time\n"
        "from medvista_ray.weights.segment import SegmentPool\n"
        "pool, weights = SegmentPool('medvista-killed'), numpy.ones(1 << 24, numpy.uint8)\n"
        "print(pool.write(weights.nbytes, [weights]).path, flush=True)\n"
        "time.sleep(60)"
    )
    before = set(os.listdir("/dev/shm"))
    child = subprocess.Popen([sys.executable, "-c", code], cwd=root, stdout=subprocess.PIPE, text=True)
    assert child.stdout
    path = Path(child.stdout.readline().strip())
    assert path.stat().st_size == 1 << 24
    assert not [name for name in set(os.listdir("/dev/shm")) - before if "medvista" in name]
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    assert not path.exists()


def test_a_damaged_shorter_or_absent_file_does_not_pass_the_check(tmp_path: Path) -> None:
    source = SharedMemoryPublisher("run", CHECKED)
    manifest = source.publish(tensors().items(), 3)
    copy = tmp_path / "copy.safetensors"
    whole = Path(manifest.path).read_bytes()
    moved = manifest.model_copy(update={"path": str(copy)})
    copy.write_bytes(whole)
    moved.check()
    copy.write_bytes(whole[:-1])
    with pytest.raises(WeightUpdateError, match="bytes, expected"):
        moved.check()
    copy.write_bytes(b"x" * len(whole))
    with pytest.raises(WeightUpdateError, match="holds publication ''"):
        moved.check()
    copy.unlink()
    with pytest.raises(WeightUpdateError, match="cannot be read"):
        moved.check()


@pytest.mark.parametrize("change", [[], [b"", b"surplus"]])
def test_buckets_of_another_length_than_announced_do_not_land(change: list[bytes]) -> None:
    stored = Stored("object_store")
    manifest = stored.publisher.publish(tensors().items(), 1)
    fetched = [stored.store[key] for key in stored.publisher.stored(1)]
    other = fetched[:-1] if not change else [*fetched, [torch.zeros(8, dtype=torch.uint8).numpy()]]
    with pytest.raises(WeightUpdateError, match="do not hold"):
        Relay("run").land(manifest, lambda: other)


def test_a_version_crosses_to_a_node_once_whoever_asks() -> None:
    stored = Stored("object_store")
    manifest = stored.publisher.publish(tensors().items(), 1)
    relay, num_fetches = Relay("run"), []

    def fetch() -> Any:
        num_fetches.append(1)
        return [stored.store[key] for key in stored.publisher.stored(1)]

    paths = {relay.land(manifest, fetch).path for _ in range(4)}
    assert len(paths) == len(num_fetches) == 1


def test_a_version_that_left_the_store_is_named() -> None:
    stored = Stored("object_store")
    for version in range(4):
        stored.publisher.publish(tensors().items(), version)
    with pytest.raises(WeightUpdateError, match=r"version 1 is not in the store; kept are \[2, 3\]"):
        stored.publisher.stored(1)


def test_a_manifest_survives_json_and_rejects_what_is_none() -> None:
    manifest = Manifest(version=1, path="/x", num_tensors=2, num_bytes=3, checksums=("00000000",))
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(WeightUpdateError, match="not a weight manifest"):
        Manifest.from_json('{"version": -1}')


def test_a_transport_is_chosen_by_name_and_a_wrong_one_is_refused_with_the_nearest() -> None:
    assert TrainConfig().weights.transport == "shared_memory"
    with pytest.raises(ConfigError, match=r"weights\.transport = 'shared_memry'.*shared_memory"):
        load_config(None, ["weights.transport=shared_memry"])
    with pytest.raises(ConfigError, match=r"weights\.bucket_mib"):
        load_config(None, ["weights.bucket_mib=0"])
    assert load_config(None, ["weights.transport=my_transports:Carrier"]).weights.transport == "my_transports:Carrier"


def test_publishers_without_a_store_need_none() -> None:
    with pytest.raises(TypeError, match="put"):
        ObjectStorePublisher("run")  # type: ignore[call-arg]
    SharedMemoryPublisher("run").publish(tensors().items(), 0).check()


def test_the_plug_in_imports_neither_vllm_nor_torch(root: Path) -> None:
    code = "import sys, medvista_ray.weights.vllm_plugin; print(sorted({'vllm', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
