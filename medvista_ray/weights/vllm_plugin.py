"""Makes vLLM's worker processes know the "medvista_shm" weight-transfer engine.

Owns the registration and the binding to cores; the engine is in `weights.vllm_transfer`, imported when vLLM makes one. vLLM calls `register` in
every process where the package is installed (entry point group "vllm.general_plugins"). Where it runs from a source
tree there are no entry points, so engines also name `WORKER_EXTENSION`, whose import registers too. Cheap without vLLM.
"""

from __future__ import annotations

import os

BACKEND = "medvista_shm"
WORKER_EXTENSION = "medvista_ray.weights.vllm_transfer.RegisterOnImport"
"""For vLLM's `worker_extension_cls`."""
ENGINE_CORES = "MEDVISTA_ENGINE_CORES"
"""Environment variable: cores that the engine's process computes on, as "0-2,6"; empty or absent leaves them alone."""


def bind_cores() -> None:
    """Keep this thread, and the compute threads it starts later, on the cores that `ENGINE_CORES` names.

    Names that this process may not use are ignored; if none is left nothing changes.
    """
    cores = parse_cores(os.environ.get(ENGINE_CORES, "")) & os.sched_getaffinity(0)
    if cores:
        os.sched_setaffinity(0, cores)


def parse_cores(cores: str) -> set[int]:
    """{0, 1, 2, 6} of "0-2,6"; empty of an empty string."""
    found: set[int] = set()
    for part in filter(None, cores.split(",")):
        first, _, last = part.partition("-")
        found.update(range(int(first), int(last or first) + 1))
    return found


def register() -> None:
    """Register the engine with vLLM in this process. Idempotent."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory as Factory

    if BACKEND not in Factory._registry:  # pyright: ignore[reportPrivateUsage]
        Factory.register_engine(BACKEND, "medvista_ray.weights.vllm_transfer", "SharedMemoryTransfer")
