"""The engines' ends of the transports inside vLLM: what is staged, refused, loaded; how a learner drives vLLM's own.

The GPU transports run here as far as a CPU goes: settings, messages, staging, and the refusal of what cannot be opened.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from medvista_ray.config import WeightsConfig
from medvista_ray.errors import ConfigError, WeightUpdateError
from medvista_ray.models.policy import TINY_FOLDER, load_inputs, load_policy
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.rollout.engine import Prompt, Sampling
from medvista_ray.rollout.vllm_engine import VllmEngine
from medvista_ray.rollout.vllm_settings import EngineSettings
from medvista_ray.weights.device import CudaIpcPublisher, DevicePublisher, NcclPublisher, make_source, tensor_checksum
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.shared_memory import SharedMemoryPublisher
from medvista_ray.weights.vllm_plugin import BACKEND, DEVICE_BACKENDS

pytestmark = [pytest.mark.vllm, pytest.mark.e2e]

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="says what is missing without a GPU")
WEIGHTS = {"0.weight": torch.full((4, 3), 2.0), "1.weight": torch.full((5, 4), 3.0)}


class Serving:
    """An engine of the shipped policy on a loop of its own."""

    def __init__(self, backend: str) -> None:
        inputs = load_inputs(TINY_FOLDER)
        self.runner = asyncio.Runner()
        self.engine = VllmEngine(
            EngineSettings(
                model=TINY_FOLDER, banned=banned_token_ids(inputs.tokenizer), num_tokens=len(inputs.tokenizer),
                max_num_seqs=8, kv_cache_mib=64, max_model_len=256, weight_backend=backend,
            )
        )  # fmt: skip
        self.prompt = Prompt(inputs.tokenizer("Is the left lung larger?")["input_ids"], ())
        self.runner.run(self.engine.start())

    def answer(self) -> tuple[list[int], np.ndarray]:
        """Greedy tokens and their log-probs."""
        done = self.runner.run(self.engine.generate(self.prompt, Sampling(0.0, 12)))
        assert set(done.versions.tolist()) == {self.engine.version}
        return done.token_ids, done.logprobs

    def close(self) -> None:
        self.engine.shutdown()
        self.runner.close()


@pytest.fixture(scope="module", params=[BACKEND, DEVICE_BACKENDS["cuda_ipc"]])
def serving(request: pytest.FixtureRequest) -> Iterator[Serving]:
    serving = Serving(request.param)
    yield serving
    serving.close()


def test_a_damaged_or_half_sent_version_is_refused_and_the_old_one_serves_on(serving: Serving) -> None:
    """By a segment with a flipped byte, or by a learner whose first bucket cannot be opened."""
    before, version = serving.answer(), serving.engine.version
    if serving.engine.settings.weight_backend == BACKEND:
        manifest, message = damaged(version + 1), "bucket 1 has checksum"
        load = serving.engine.load_version(manifest)
    else:
        manifest, message = Manifest(version=version + 1, num_tensors=2, num_bytes=128), "did not arrive"
        load = serving.engine.load_version(manifest, lambda _: send_what_cannot_be_opened(serving.engine))
    with pytest.raises(WeightUpdateError, match=f"version {version + 1}.*{message}"):
        serving.runner.run(load)
    after = serving.answer()
    assert serving.engine.healthy
    assert serving.engine.version == version
    assert after[0] == before[0]
    assert np.array_equal(after[1], before[1])


def test_the_engine_goes_on_to_a_good_version_that_outlives_its_publisher(serving: Serving) -> None:
    """The second of three versions fails after its publisher is gone: the first, which the engine holds, is restored."""
    if serving.engine.settings.weight_backend != BACKEND:
        pytest.skip("needs a GPU to receive anything")
    policy, publisher = load_policy(TINY_FOLDER), SharedMemoryPublisher(f"engines-{os.getpid()}")
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.mul_(1.1)
    before = serving.answer()
    version = serving.engine.version + 1
    serving.runner.run(serving.engine.load_version(publisher.publish(policy.model.named_parameters(), version)))
    good = serving.answer()
    assert not np.array_equal(good[1], before[1])
    other = SharedMemoryPublisher(f"engines-{os.getpid()}-broken")
    broken = {n: torch.zeros_like(p) for n, p in policy.model.named_parameters()}
    broken[next(reversed(broken))] = torch.zeros(3, 5, 7)
    manifest = other.publish(broken.items(), version + 1)
    publisher.close()
    with pytest.raises(WeightUpdateError, match=f"version {version + 1} was not loaded"):
        serving.runner.run(serving.engine.load_version(manifest))
    other.close()
    assert serving.engine.version == version
    restored = serving.answer()
    assert restored[0] == good[0]
    assert np.array_equal(restored[1], good[1])


def test_the_model_sees_nothing_before_all_has_arrived_and_was_checked(tmp_path: Path) -> None:
    model, staged = toy_engine()
    source = SharedMemoryPublisher(f"staged-{os.getpid()}")
    manifest = source.publish(WEIGHTS.items(), 1)
    staged.start_weight_update()
    staged.receive_weights(staged.parse_update_info({"path": manifest.path}))
    assert all((parameter == 1).all() for parameter in model.parameters())
    order = dict(staged._arrived)
    sums = [tensor_checksum(tensor) for tensor in order.values()]
    complete = {"num_tensors": 2, "num_bytes": 128}
    with pytest.raises(WeightUpdateError, match="2 tensors of 128 bytes arrived, expected 3 of 128"):
        staged.receive_weights(staged.parse_update_info(complete | {"num_tensors": 3}))
    with pytest.raises(WeightUpdateError, match="arrived with checksum"):
        staged.receive_weights(staged.parse_update_info(complete | {"checksums": [sums[0], "00000000"]}))
    assert all((parameter == 1).all() for parameter in model.parameters())
    staged.receive_weights(staged.parse_update_info(complete | {"checksums": sums}))
    staged.finish_weight_update()
    assert {name: float(p.detach()[0, 0]) for name, p in model.named_parameters()} == {"0.weight": 2.0, "1.weight": 3.0}
    source.close()


def test_a_failed_update_leaves_nothing_for_the_next() -> None:
    model, staged = toy_engine()
    source = SharedMemoryPublisher(f"staged-{os.getpid()}")
    update = staged.parse_update_info({"path": source.publish(WEIGHTS.items(), 1).path})
    staged.start_weight_update()
    staged.receive_weights(update)
    staged.start_weight_update()
    with pytest.raises(WeightUpdateError, match="0 tensors"):
        staged.receive_weights(staged.parse_update_info({"num_tensors": 2, "num_bytes": 128}))
    assert all((parameter == 1).all() for parameter in model.parameters())
    source.close()


def test_a_frozen_layer_of_which_nothing_is_sent_stays_as_it_was() -> None:
    model, staged = toy_engine()
    source = SharedMemoryPublisher(f"staged-{os.getpid()}")
    manifest = source.publish([("0.weight", WEIGHTS["0.weight"])], 1)
    staged.start_weight_update()
    staged.receive_weights(staged.parse_update_info({"path": manifest.path}))
    staged.receive_weights(staged.parse_update_info({"num_tensors": 1, "num_bytes": 48}))
    staged.finish_weight_update()
    assert {name: p.detach().unique().tolist() for name, p in model.named_parameters()} == {"0.weight": [2.0], "1.weight": [1.0]}
    source.close()


@NO_CUDA
@pytest.mark.parametrize("publisher", [CudaIpcPublisher, NcclPublisher])
def test_without_cuda_the_learner_says_what_to_use_instead(publisher: type[DevicePublisher]) -> None:
    with pytest.raises(ConfigError, match=rf"weights\.transport = '{publisher.transport}' needs a CUDA device.*shared_memory"):
        publisher("run", WeightsConfig(transport=publisher.transport))


def test_vllms_sides_are_set_up_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    ipc = CudaIpcPublisher("run").init_info(1 << 20)
    nccl: Any = NcclPublisher("run").init_info(1 << 20)
    assert (ipc.backend, ipc.is_sender, ipc.packed, ipc.packed_buffer_size_bytes) == ("ipc", True, True, 1 << 20)  # type: ignore[attr-defined]
    assert (nccl.backend, nccl.is_sender, nccl.world_size, nccl.packed_buffer_size_bytes) == ("nccl", True, 2, 1 << 20)
    assert nccl.master_port > 0


def test_a_source_declares_what_it_yields() -> None:
    from vllm.distributed.weight_transfer.base import WeightSource

    source = make_source(WEIGHTS)
    declared = [(meta.name, meta.dtype, meta.shape) for meta in source.metadata()]
    assert isinstance(source, WeightSource)
    assert declared == [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in source]


def test_the_learner_sends_a_whole_version_to_one_engine_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU vLLM's sender is stood in for: what it is given, when it is made anew, what an old version does."""
    made: list[Any] = []

    class Sender:
        def __init__(self, init_info: Any, client: Any, source: Any) -> None:
            self.init_info, self.client, self.source, self.sent = init_info, client, source, []
            made.append(self)

        def send_weights(self) -> None:
            if self.client == "broken":
                raise RuntimeError("the engine is gone")
            self.sent.append({name: float(tensor.flatten()[0]) for name, tensor in self.source})

        def shutdown(self) -> None: ...

    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(WeightTransferTrainerFactory, "trainer_init", lambda init_info, **sides: Sender(init_info, **sides))
    publisher = NcclPublisher("run", WeightsConfig(transport="nccl", bucket_mib=1, checksum=True))
    weights = {"large": torch.ones(1 << 19), "small": torch.ones(2)}
    first = publisher.publish(weights.items(), 1)
    publisher.send(first, "a", 11, lambda: "client")
    weights["small"].fill_(7.0)  # the learner trains on
    publisher.send(first, "b", 1, lambda: "client")
    second = publisher.publish(weights.items(), 2)
    publisher.send(second, "a", 11, lambda: "client")
    publisher.send(second, "b", 12, lambda: "client")
    assert [sender.sent for sender in made] == [
        [{"large": 1.0, "small": 1.0}, {"large": 1.0, "small": 7.0}],
        [{"large": 1.0, "small": 1.0}],
        [{"large": 1.0, "small": 7.0}],
    ], "the second engine came back in a new process"
    assert made[0].init_info.packed_buffer_size_bytes == 2 << 20, "no tensor is cut"
    assert len(second.checksums) == 2
    with pytest.raises(WeightUpdateError, match="version 1 is no longer kept"):
        publisher.send(first, "b", 1, lambda: "client")
    for _ in range(2):
        with pytest.raises(RuntimeError, match="engine is gone"):
            publisher.send(second, "c", 1, lambda: "broken")
    assert len(made) == 5, "a failed engine gets a new group"
    publisher.close()


def damaged(version: int) -> Manifest:
    """Of the shipped policy's weights, one byte of the second bucket flipped behind the manifest's back."""
    publisher = SharedMemoryPublisher(f"damaged-{os.getpid()}", WeightsConfig(checksum=True, bucket_mib=1))
    manifest = publisher.publish(load_policy(TINY_FOLDER).model.named_parameters(), version)
    with open(manifest.path, "r+b", buffering=0) as file:
        file.seek((1 << 20) + 5)
        old = file.read(1)[0]
        file.seek((1 << 20) + 5)
        file.write(bytes([old ^ 16]))
    kept.append(publisher)  # its memory must not go before the engine has looked
    return manifest


kept: list[SharedMemoryPublisher] = []


async def send_what_cannot_be_opened(engine: VllmEngine) -> None:
    """A learner's steps up to a bucket whose memory this engine has no way to."""
    await engine.control("init", {"packed": True})
    await engine.control("start", {})
    bucket = {"names": ["a"], "dtype_names": ["float32"], "shapes": [[4]], "tensor_sizes": [16]}
    await engine.control("update", bucket | {"ipc_handles": {"GPU-none": [0] * 8}})


def toy_engine() -> tuple[torch.nn.Module, Any]:
    """Two layers of ones behind the staging end, on vLLM's layer-by-layer reload; files take the place of the GPU."""
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
    from vllm.model_executor.model_loader.weight_utils import default_weight_loader

    from medvista_ray.weights.vllm_device import _Staged
    from medvista_ray.weights.vllm_transfer import SharedMemoryTransfer

    class Toy(torch.nn.Sequential):
        def load_weights(self, weights: Any) -> None:
            parameters = dict(self.named_parameters())
            for name, tensor in weights:
                getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], tensor)

    class Files(SharedMemoryTransfer):
        def receive_weights(self, update_info: Any) -> None:
            model: Any = self.model  # the collector, as of vLLM's own engines
            model.load_weights(self._segments.read(Path(update_info.path)))

    class StagedFiles(_Staged, Files):
        pass

    model = Toy(torch.nn.Linear(3, 4, bias=False), torch.nn.Linear(4, 5, bias=False))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    record_metadata_for_reloading(model)
    config: Any = SimpleNamespace(parallel_config=None, model_config=SimpleNamespace(dtype=torch.float32))
    staged: Any = StagedFiles(SimpleNamespace(), config, torch.device("cpu"), model)  # type: ignore[arg-type]
    staged.init_transfer_engine(None)
    return model, staged
