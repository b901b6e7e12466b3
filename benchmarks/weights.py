"""What a weight update costs: until every receiver holds the new version, and how long an engine stands still for it.

    python benchmarks/weights.py --json weights.json [--only engine sweep] [--megabytes 10 2000] [--transports shared_memory]

`engine`: the shipped policy in a real engine with requests in flight. `sweep`: random weights of 10 MB to 2 GB (1e6 and
1e9 bytes) and one to four processes that hold tensors of these sizes and use the transport's own receiving code; each is
compared with copying the same bytes once within this process. A size that this machine has no memory for is left out
and named. The object store is a Ray of this script's own.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import psutil
import torch

from benchmarks.harness import own_ray
from medvista_ray.config import WeightsConfig
from medvista_ray.weights.manifest import Held, Manifest
from medvista_ray.weights.reading import SegmentReader
from medvista_ray.weights.transport import TRANSPORTS

TENSOR_BYTES = 16 << 20
"""Of each but the last random tensor: a linear layer of 2048 x 2048 fp32 weights."""
SPARE_BYTES = 1 << 30
"""Memory that a combination must leave free."""
COPIES = {"shared_memory": 3, "object_store": 6}
"""How often a version lies in memory, besides the receivers: the learner's tensors, two segments, and three in the store."""
STORED = 3
"""Of which in the object store: two that are kept, one that is written."""


class Cluster:
    """Receivers of one size, and the publisher they get their versions from."""

    def __init__(self, transport: str, num_bytes: int, num_receivers: int, config: WeightsConfig, stack: ExitStack) -> None:
        self.weights = random_weights(num_bytes)
        shapes = {name: tuple(tensor.shape) for name, tensor in self.weights.items()}
        self.land = self._relay(stack) if transport == "object_store" else lambda manifest: manifest
        put = sys.modules["ray"].put if transport == "object_store" else None
        self.publisher: Any = TRANSPORTS.load(transport)(f"bench-{os.getpid()}", config, put=put)
        stack.callback(self.publisher.close)
        self.pipes = [stack.enter_context(receiver(shapes)) for _ in range(num_receivers)]

    def update(self, version: int) -> float:
        """Seconds until all receivers hold `version`; what they hold is verified."""
        for tensor in self.weights.values():
            tensor[0] = version
        start = time.perf_counter()
        manifest = self.land(self.publisher.publish(self.weights.items(), version))
        for pipe in self.pipes:
            pipe.send(manifest.to_json())
        found = [pipe.recv() for pipe in self.pipes]
        seconds = time.perf_counter() - start
        assert found == [[version] * len(self.weights)] * len(self.pipes), "a receiver holds something else"
        return seconds

    def _relay(self, stack: ExitStack) -> Any:
        import ray

        from actors.weights import RelayActor

        relay: Any = RelayActor.remote()  # pyright: ignore[reportAttributeAccessIssue]
        stack.callback(ray.kill, relay)

        def land(manifest: Manifest) -> Manifest:
            stored = self.publisher.stored(manifest.version)
            return Manifest.from_json(ray.get(relay.land.remote(manifest.to_json(), stored)))

        return land


def random_weights(num_bytes: int) -> dict[str, torch.Tensor]:
    """fp32, together `num_bytes`."""
    sizes = [TENSOR_BYTES] * (num_bytes // TENSOR_BYTES) + [num_bytes % TENSOR_BYTES]
    return {f"layers.{i}.weight": torch.rand(size // 4) for i, size in enumerate(sizes) if size}


@contextmanager
def receiver(shapes: dict[str, tuple[int, ...]]) -> Iterator[Connection]:
    """A process that holds tensors of these shapes; versions are sent to it through the pipe."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=receive, args=(there, shapes), daemon=True)
    process.start()
    assert here.recv() == "ready"
    try:
        yield here
    finally:
        here.send(None)
        process.join(30)


def receive(pipe: Connection, shapes: dict[str, tuple[int, ...]]) -> None:
    """Load every version that comes: what an engine does, with plain tensors in place of a model's layers."""
    torch.set_num_threads(1)
    mine = {name: torch.zeros(shape) for name, shape in shapes.items()}
    segments = SegmentReader()
    pipe.send("ready")
    while (text := pipe.recv()) is not None:
        held = Held(Manifest.from_json(text))
        for name, tensor in segments.read(Path(held.path)):
            mine[name].copy_(tensor)
        held.close()
        pipe.send([int(tensor[0]) for tensor in mine.values()])


def copy_once_s(num_bytes: int, num_runs: int) -> float:
    """Median seconds of copying so many bytes between two places of memory in use, by one thread."""
    source, target = np.ones(num_bytes, np.uint8), np.zeros(num_bytes, np.uint8)
    seconds: list[float] = []
    for _ in range(num_runs):
        start = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def measure(transport: str, megabytes: int, num_receivers: int, checksum: bool, args: Namespace) -> dict[str, Any]:
    """One line of the table."""
    num_bytes = megabytes * 1_000_000 // 4 * 4
    row: dict[str, Any] = {
        "transport": transport, "megabytes": megabytes, "num_receivers": num_receivers, "checksum": checksum
    }  # fmt: skip
    need = (COPIES[transport] + num_receivers) * num_bytes + SPARE_BYTES
    if transport == "object_store" and STORED * num_bytes > args.store_mib << 20:
        return row | {"left_out": f"{STORED} versions are more than the object store's {args.store_mib} MiB"}
    if need > (free := psutil.virtual_memory().available):
        return row | {"left_out": f"needs {need / 1e9:.1f} GB of memory, {free / 1e9:.1f} GB are free"}
    copy_s = copy_once_s(num_bytes, args.num_runs)
    with ExitStack() as stack:
        cluster = Cluster(transport, num_bytes, num_receivers, WeightsConfig(checksum=checksum), stack)
        for version in range(args.num_warm):
            cluster.update(version)
        seconds = [cluster.update(args.num_warm + run) for run in range(args.num_runs)]
    return row | {
        "update_ms": round(median(seconds) * 1e3, 2),
        "update_ms_of_runs": [round(s * 1e3, 2) for s in seconds],
        "copy_ms": round(copy_s * 1e3, 2),
        "over_memcpy": round(median(seconds) / copy_s, 2),
    }


def sweep(args: Namespace) -> dict[str, Any]:
    """The table; `over_memcpy` is that of shared memory at the largest size measured with one receiver."""
    rows: list[dict[str, Any]] = []
    for transport in args.transports:
        with own_ray(args.store_mib) if transport == "object_store" else ExitStack():
            for megabytes in args.megabytes:
                for num_receivers in args.receivers:
                    for checksum in (False, True) if num_receivers == 1 else (False,):
                        rows.append(measure(transport, megabytes, num_receivers, checksum, args))
                        print(rows[-1], flush=True)
    plain = [r for r in rows if r["transport"] == "shared_memory" and r["num_receivers"] == 1 and not r["checksum"]]
    measured = [r for r in plain if "over_memcpy" in r]
    if not measured:
        return {"table": rows}
    largest = max(measured, key=lambda row: row["megabytes"])
    return {"over_memcpy": largest["over_memcpy"], "over_memcpy_megabytes": largest["megabytes"], "table": rows}


async def update_engine(args: Namespace) -> dict[str, Any]:
    """Versions of the shipped policy into its engine while it samples, and while it idles."""
    from medvista_ray.main_job import actor_environment
    from medvista_ray.models.policy import TINY_FOLDER, load_policy
    from medvista_ray.rollout.chat import banned_token_ids
    from medvista_ray.rollout.engine import Prompt, Sampling
    from medvista_ray.rollout.vllm_engine import VllmEngine
    from medvista_ray.rollout.vllm_settings import EngineSettings
    from medvista_ray.weights.shared_memory import SharedMemoryPublisher

    os.environ.update(actor_environment())  # as the engine's process has it in a run
    policy = load_policy(TINY_FOLDER)
    banned = banned_token_ids(policy.tokenizer)
    engine = VllmEngine(EngineSettings(model=TINY_FOLDER, banned=banned, kv_cache_mib=256, max_model_len=768))
    publisher, versions = SharedMemoryPublisher(f"bench-{os.getpid()}"), iter(range(1, 1_000_000))
    weights = dict(policy.model.named_parameters())
    prompt = Prompt(policy.tokenizer("Which region of the picture is brighter? " * 4)["input_ids"], ())

    async def sample() -> None:
        while True:
            await engine.generate(prompt, Sampling(1.0, 256))

    async def update() -> tuple[float, float, int]:
        start = time.perf_counter()
        manifest = publisher.publish(weights.items(), next(versions))
        times = await engine.load_version(manifest)
        return time.perf_counter() - start, times.pause_s, manifest.num_bytes

    async def rounds(num: int) -> dict[str, Any]:
        found: list[tuple[float, float, int]] = []
        for _ in range(num):
            found.append(await update())
            await asyncio.sleep(0.2)  # the engine works between two updates
        updates, pauses, sizes = zip(*found, strict=True)
        figures = {"update_ms": updates, "pause_ms": pauses}
        return {"megabytes": round(sizes[0] / 1e6, 1), "num_runs": num} | {
            key: round(median(seconds) * 1e3, 2) for key, seconds in figures.items()
        } | {f"{key}_of_runs": [round(s * 1e3, 2) for s in seconds] for key, seconds in figures.items()}  # fmt: skip

    await engine.start()
    try:
        await rounds(args.num_warm)
        idle = await rounds(args.num_updates)
        sampling = [asyncio.create_task(sample()) for _ in range(args.in_flight)]
        await asyncio.sleep(1.0)
        busy = await rounds(args.num_updates)
        for task in sampling:
            task.cancel()
        await asyncio.gather(*sampling, return_exceptions=True)
    finally:
        engine.shutdown()
        publisher.close()
    return {"idle": idle, "in_flight": {"num_requests": args.in_flight} | busy}


def engine(args: Namespace) -> dict[str, Any]:
    """`update_30mb_ms` and `pause_ms` with requests in flight; the table has the idle engine too."""
    found = asyncio.run(update_engine(args))
    busy = found["in_flight"]
    return {"update_30mb_ms": busy["update_ms"], "pause_ms": busy["pause_ms"], "engine": found}


PARTS = {"engine": engine, "sweep": sweep}
UNITS = {"update_30mb_ms": "ms", "pause_ms": "ms", "over_memcpy": "times the copy"}


def main() -> int:
    """Measure; the JSON goes to --json, the figures to the screen."""
    parser = ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: both")
    parser.add_argument("--transports", nargs="+", choices=COPIES, default=list(COPIES))
    parser.add_argument("--megabytes", nargs="+", type=int, default=[10, 30, 100, 500, 2000])
    parser.add_argument("--receivers", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--store-mib", type=int, default=2048, help="memory of the object store (default: 2048)")
    parser.add_argument("--num-runs", type=int, default=5, help="updates behind each median of the sweep (default: 5)")
    parser.add_argument("--num-warm", type=int, default=3, help="updates before them: memory is used for the first time")
    parser.add_argument("--num-updates", type=int, default=20, help="updates of the engine (default: 20)")
    parser.add_argument("--in-flight", type=int, default=16, help="requests that the engine samples (default: 16)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB"
    command = shlex.join(["python", *sys.argv])
    figures: dict[str, Any] = {"machine": machine, "command": command, "load_before": os.getloadavg()[0]}
    for part in args.only:
        figures |= PARTS[part](args)
    args.json.parent.mkdir(parents=True, exist_ok=True)
    args.json.write_text(json.dumps(figures, indent=2) + "\n")
    for key, unit in UNITS.items():
        if key in figures:
            print(f"{key:16} {figures[key]:8.2f} {unit}")
    print(f"on {machine}: {command} -> {args.json}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
