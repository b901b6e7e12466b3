"""Which CPU cores the learner may use: those that no engine is bound to, if there are any.

An engine binds its worker to the cores of VLLM_CPU_OMP_THREADS_BIND; a learner on the same core would halve both.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from medvista_ray.config import GeneratorConfig, LearnerConfig

MAX_THREADS = 4
"""More do not help the products of a small policy."""
_NOT_BUSY = ("idle", "iowait", "guest", "guest_nice")
"""Clocks of a core that stand for nothing at work, or (a guest's time is its host's user time) count twice."""


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


@dataclass(frozen=True)
class Usage:
    """Readings of three clocks, in seconds."""

    wall: float
    busy: float
    """Of this process's cores, all programs on them together."""
    own: float
    """Of this process, all its threads together."""

    @classmethod
    def read(cls) -> Usage:
        """Now."""
        times = psutil.cpu_times(percpu=True)
        used = [times[core] for core in os.sched_getaffinity(0) if core < len(times)]
        busy = sum(sum(core) - sum(getattr(core, name, 0.0) for name in _NOT_BUSY) for core in used)
        return cls(time.monotonic(), busy, time.process_time())


class IdleCores:
    """The engines' cores, for the learner's threads from when the engines have nothing to do (`free`, from any thread).

    As many as other programs leave: threads that wait for one another at every product, each for its turn on a core that
    another program has too, take several times as long as one thread. Several learner processes, which would be other
    programs to each other, share all.
    """

    def __init__(self, learner: LearnerConfig, read: Callable[[], Usage] = Usage.read) -> None:
        self._learner, self._read = learner, read
        self._are_free = False
        self._last: Usage | None = None

    def free(self) -> None:
        """The engines are idle from here on."""
        self._are_free = True

    def take(self) -> None:
        """In the thread that trains, between two updates: torch keeps the number of threads for each thread."""
        import torch

        if self._are_free and (num_threads := self._num_threads()) != torch.get_num_threads():
            torch.set_num_threads(num_threads)

    def _num_threads(self) -> int:
        """What this process's share of the cores that others left since the last call allows, halves rounded up."""
        learner, last = self._learner, self._last
        self._last = now = self._read()
        cores = float(len(os.sched_getaffinity(0)) // learner.num_processes)
        if last is not None and learner.num_processes == 1 and now.wall > last.wall:
            cores -= max(now.busy - last.busy - (now.own - last.own), 0.0) / (now.wall - last.wall)
        return max(min(int(cores + 0.5), MAX_THREADS), learner.num_threads)


def _bind_all_threads(cores: set[int]) -> None:
    for thread in Path("/proc/self/task").iterdir():
        # A thread may end in between.
        with suppress(ProcessLookupError):
            os.sched_setaffinity(int(thread.name), cores)


def _range(part: str) -> range:
    """Cores of "3" or "0-3"; none of "auto" or "nobind"."""
    first, _, last = part.strip().partition("-")
    return range(int(first), int(last or first) + 1) if first.isdigit() else range(0)
