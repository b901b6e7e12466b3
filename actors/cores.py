"""Which CPU cores the learner may use: those that no engine is bound to, if there are any.

An engine binds its worker to the cores of VLLM_CPU_OMP_THREADS_BIND; a learner on the same core would halve both.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from medvista_ray.config import GeneratorConfig, LearnerConfig

MAX_THREADS = 4
"""More do not help the products of a small policy."""


def engine_cores(config: GeneratorConfig) -> set[int]:
    """Cores that the engines are bound to: `cpu_cores`, else one each from core 0; none if they run on GPUs."""
    if config.num_gpus > 0:
        return set()
    if not config.cpu_cores:
        return set(range(config.num_generators))
    return {core for entry in config.cpu_cores for part in entry.replace("|", ",").split(",") for core in _range(part)}


def stay_off_engine_cores(config: GeneratorConfig, num_threads: int = 1) -> list[int]:
    """Bind every thread of this process to the other cores and return them.

    Changes nothing where these are no more than `num_threads`: tools and actors want a core too, and one that is bound
    beside them would wait for its core while an engine's is free.
    """
    allowed = os.sched_getaffinity(0)
    free = allowed - engine_cores(config)
    if len(free) <= num_threads:
        return sorted(allowed)
    _bind_all_threads(free)
    return sorted(free)


@contextmanager
def use_all_cores() -> Generator[None]:
    """Every core of this machine that the process may have. Afterwards the binding is as before."""
    before = os.sched_getaffinity(0)
    _bind_all_threads(set(range(os.cpu_count() or 1)))
    try:
        yield
    finally:
        _bind_all_threads(before)


class IdleCores:
    """The engines' cores, for the learner's threads from when the engines have nothing to do (`free`, from any thread)."""

    def __init__(self, learner: LearnerConfig) -> None:
        self._learner, self._are_free = learner, False

    def free(self) -> None:
        """The engines are idle from here on."""
        self._are_free = True

    def take(self) -> None:
        """In the thread that trains, between two updates: torch keeps the number of threads for each thread."""
        import torch

        num_cores = len(os.sched_getaffinity(0)) // self._learner.num_processes
        if self._are_free and torch.get_num_threads() < min(num_cores, MAX_THREADS):
            torch.set_num_threads(min(num_cores, MAX_THREADS))


def _bind_all_threads(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        # A thread may end in between.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _range(part: str) -> range:
    """Cores of "3" or "0-3"; none of "auto" or "nobind"."""
    first, _, last = part.strip().partition("-")
    return range(int(first), int(last or first) + 1) if first.isdigit() else range(0)
