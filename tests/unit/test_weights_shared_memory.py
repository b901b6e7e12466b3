"""The shared-memory transport: whole files, two generations, clear errors; the manifest; what registers where."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.shared_memory import SharedMemoryPublisher
from medvista_ray.weights.transport import TRANSPORTS


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"a": torch.full((4, 8), value), "b": torch.full((3,), value, dtype=torch.bfloat16)}


@pytest.fixture
def publisher(tmp_path: Path) -> SharedMemoryPublisher:
    return SharedMemoryPublisher("run 1/x", root=tmp_path)


def test_a_published_version_reads_back_bit_for_bit(publisher: SharedMemoryPublisher) -> None:
    manifest = publisher.publish(tensors(2.5).items(), 7)
    stored = load_file(manifest.path)
    manifest.check()
    assert manifest.version == 7
    assert manifest.num_tensors == 2
    assert all(torch.equal(stored[name], tensor) for name, tensor in tensors(2.5).items())


def test_views_and_parameters_are_published_by_value(publisher: SharedMemoryPublisher) -> None:
    parameter = torch.nn.Parameter(torch.arange(12.0).reshape(3, 4))
    manifest = publisher.publish([("w", parameter), ("t", parameter.T)], 1)
    stored = load_file(manifest.path)
    assert torch.equal(stored["w"], parameter.data)
    assert torch.equal(stored["t"], parameter.data.T)


def test_the_two_newest_versions_stay_readable(publisher: SharedMemoryPublisher) -> None:
    manifests = [publisher.publish(tensors().items(), version) for version in range(4)]
    assert [Path(m.path).exists() for m in manifests] == [False, False, True, True]


def test_publishing_a_version_again_after_a_rollback_leaves_the_mapped_file_alone(
    publisher: SharedMemoryPublisher,
) -> None:
    first = publisher.publish(tensors(1.0).items(), 5)
    second = publisher.publish(tensors(2.0).items(), 5)
    first.check()
    assert first.path != second.path


def test_no_temporary_file_is_left_and_close_removes_everything(publisher: SharedMemoryPublisher) -> None:
    publisher.publish(tensors().items(), 0)
    assert [file.suffix for file in publisher.folder.iterdir()] == [".safetensors"]
    publisher.close()
    publisher.close()
    assert not publisher.folder.exists()


def test_only_this_user_may_read_the_folder(publisher: SharedMemoryPublisher) -> None:
    publisher.publish(tensors().items(), 0)
    assert publisher.folder.stat().st_mode & 0o077 == 0


def test_a_full_shared_memory_is_named_before_anything_is_written(
    publisher: SharedMemoryPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 0))
    with pytest.raises(WeightUpdateError, match="do not fit"):
        publisher.publish(tensors().items(), 0)
    assert list(publisher.folder.iterdir()) == []


def test_nothing_to_publish_is_an_error(publisher: SharedMemoryPublisher) -> None:
    with pytest.raises(WeightUpdateError, match="no tensors"):
        publisher.publish([], 0)


def test_a_torn_or_changed_or_absent_file_does_not_pass_the_check(publisher: SharedMemoryPublisher) -> None:
    manifest = publisher.publish(tensors().items(), 3)
    file = Path(manifest.path)
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(WeightUpdateError, match="bytes, expected"):
        manifest.check()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(WeightUpdateError, match="checksum"):
        manifest.check()
    file.unlink()
    with pytest.raises(WeightUpdateError, match="cannot be read"):
        manifest.check()


def test_a_manifest_survives_json_and_rejects_what_is_none() -> None:
    manifest = Manifest(version=1, path="/x", num_tensors=2, num_bytes=3, checksum="00000000")
    assert Manifest.from_json(manifest.to_json()) == manifest
    with pytest.raises(WeightUpdateError, match="not a weight manifest"):
        Manifest.from_json('{"version": -1}')


def test_the_transport_is_found_by_its_name() -> None:
    assert TRANSPORTS.load("shared_memory") is SharedMemoryPublisher


def test_the_plug_in_imports_neither_vllm_nor_torch(root: Path) -> None:
    code = "import sys, medvista_ray.weights.vllm_plugin; print(sorted({'vllm', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
