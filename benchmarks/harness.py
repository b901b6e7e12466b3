"""What benchmarks that start Ray share: a Ray of their own, processes' CPU time and memory, and the file of figures.

Invariant: only a Ray that was started here is ended here. Called by the scripts of this folder.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

START_ATTEMPTS = 5
ROOT = str(Path(__file__).resolve().parents[1])


@contextmanager
def own_ray(object_store_mib: int = 256) -> Iterator[None]:
    """A Ray of this process's own, whose actors have the environment of a run's, and its end."""
    os.environ["RAY_AUTH_MODE"] = "disabled"  # a local Ray would switch token authentication on; read at the import
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")  # Ray's 15 would let any other program starve the workers
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))  # for its workers
    import ray

    from medvista_ray.main_job import actor_environment

    folder = tempfile.mkdtemp(prefix="mv", dir="/tmp")
    options: dict[str, Any] = {"address": "local", "num_cpus": 8, "include_dashboard": False, "log_to_driver": False}
    options |= {"object_store_memory": object_store_mib << 20, "_temp_dir": folder, "logging_level": "warning"}
    options["runtime_env"] = {"env_vars": actor_environment()}
    for attempt in range(1, START_ATTEMPTS + 1):
        try:
            ray.init(**options)
            break
        except Exception as error:  # fault boundary: Ray's bound of 30 s on its start is bare, and short on a busy machine
            ray.shutdown()
            if attempt == START_ATTEMPTS or "timed out during startup" not in str(error):
                raise
    try:
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


class Process:
    """A process under observation, usually an actor's."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)

    @classmethod
    def of_actor(cls, actor: Any) -> Process:
        """The process of an actor that does nothing else yet."""
        import ray

        return cls(ray.get(actor.__ray_call__.remote(lambda _: os.getpid()), timeout=120))

    def cpu_s(self) -> float:
        """Seconds of CPU time so far, user and system, all threads."""
        times = self._process.cpu_times()
        return times.user + times.system

    def private_mib(self) -> float:
        """Memory that only this process holds; what it maps of the object store is not in it."""
        return self._process.memory_full_info().uss / 2**20


def machine() -> dict[str, Any]:
    """What every file of figures says first."""
    return {
        "machine": platform.processor() or platform.machine(),
        "command": " ".join(sys.argv),
        "num_cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
    }


def write_figures(path: Path, figures: dict[str, Any]) -> None:
    """To the file and the terminal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
