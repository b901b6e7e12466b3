"""Makes vLLM's worker processes know our weight-transfer engines.

Owns the registration, the binding to cores and the life span of the engine's process; the engines are in
`weights.vllm_transfer` and `weights.vllm_device`, imported when vLLM makes one. vLLM calls `register` in every process
where the package is installed (entry point group "vllm.general_plugins"). Where it runs from a source tree there are no
entry points, so engines also name `WORKER_EXTENSION`, whose import registers too. Importing this module is cheap and
does not need vLLM.
"""

from __future__ import annotations

import os
import threading
import time

BACKEND = "medvista_shm"
DEVICE_BACKENDS = {"cuda_ipc": "medvista_ipc", "nccl": "medvista_nccl"}
"""By transport; all others end in a segment, which `BACKEND` loads."""
WORKER_EXTENSION = "medvista_ray.weights.vllm_transfer.RegisterOnImport"
"""For vLLM's `worker_extension_cls`."""
ENGINE_CORES = "MEDVISTA_ENGINE_CORES"
"""Environment variable: cores that the engine's process computes on, as "0-2,6"; empty or absent leaves them alone."""

PARENT_POLL_S = 1.0


def bind_cores() -> None:
    """Keep this thread, and the compute threads it starts later, on the cores that `ENGINE_CORES` names.

    Names that this process may not use are ignored; if none is left nothing changes.
    """
    cores = parse_cores(os.environ.get(ENGINE_CORES, "")) & os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)


def end_with_parent() -> None:
    """End this process with the one that started it: an engine whose actor was killed must not keep its memory."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="end-with-parent", daemon=True).start()


def parse_cores(cores: str) -> set[int]:
    """{0, 1, 2, 6} of "0-2,6"; empty of an empty string."""
    found: set[int] = set()
    for part in filter(None, cores.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def register() -> None:
    """Register the engines with vLLM in this process. Idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory

    if BACKEND not in Factory._registry:  # pyright: ignore[reportPrivateUsage]
        Factory.register_engine(BACKEND, "medvista_ray.weights.vllm_transfer", "SharedMemoryTransfer")
        Factory.register_engine(DEVICE_BACKENDS["cuda_ipc"], "medvista_ray.weights.vllm_device", "StagedIpc")
        Factory.register_engine(DEVICE_BACKENDS["nccl"], "medvista_ray.weights.vllm_device", "StagedNccl")
