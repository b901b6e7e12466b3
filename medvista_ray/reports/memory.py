"""Peak memory of a run: its driver, the Ray processes it started or was given, and their children (vLLM workers).

What is counted: the sum of PSS (proportional set size) over those processes, so a page that several map counts once in
all: shared libraries, Ray's object store and mapped weight files are not counted twice. Where PSS cannot be read, RSS
stands in. Not counted: files in shared memory that no process maps, and the page cache. Linux; elsewhere RSS.

Which processes: every descendant of the driver and, for workers of a cluster that was running before (they descend
from its raylet), every process whose environment carries the run's marker. Used by the composition roots.
"""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Iterator

import psutil

GIB = 1024**3
MAX_SHARE = 0.02
"""Of the time, for sampling: the kernel walks all mappings of every process, half a second of a busy core."""
MARKER_NAME = "MEDVISTA_RUN_ID"
"""Set this variable in the runtime environment of a run's actors, so that they are found under any raylet."""


def run_processes(root_pid: int, marker: str | None = None) -> list[psutil.Process]:
    """`root_pid` and the processes whose environment says MARKER_NAME=marker, each with all its descendants."""
    found: dict[int, psutil.Process] = {}
    for root in _roots(root_pid, marker):
        try:
            found.update({process.pid: process for process in [root, *root.children(recursive=True)]})
        except psutil.Error:  # it ended meanwhile
            continue
    return list(found.values())


def measure(processes: list[psutil.Process]) -> dict[str, int]:
    """Bytes (PSS) by process name; processes that ended meanwhile are left out."""
    sizes: Counter[str] = Counter()
    for process in processes:
        try:
            sizes[_name(process)] += _bytes(process)
        except psutil.Error:
            continue
    return dict(sizes)


class PeakMemory:
    """Samples a run's memory in a background thread until it is stopped.

    with PeakMemory(marker=run_id) as memory: ...; memory.peak_gib
    """

    def __init__(
        self, root_pid: int | None = None, marker: str | None = None, interval_s: float = 1.0, max_share: float = MAX_SHARE
    ) -> None:
        self._root_pid = root_pid or os.getpid()
        self._marker = marker
        self._interval_s, self._max_share = interval_s, max_share
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="peak-memory", daemon=True)
        self._peak: dict[str, int] = {}
        self.num_samples = 0

    @property
    def peak_gib(self) -> float:
        """Largest sum seen, in GiB."""
        return sum(self._peak.values()) / GIB

    @property
    def by_process_gib(self) -> dict[str, float]:
        """The dozen largest process names at that moment, in GiB, largest first."""
        return {name: size / GIB for name, size in Counter(self._peak).most_common(12)}

    def sample(self) -> None:
        """Measure once, now."""
        sizes = measure(run_processes(self._root_pid, self._marker))
        self.num_samples += 1
        if sum(sizes.values()) > sum(self._peak.values()):
            self._peak = sizes

    def _run(self) -> None:
        pause_s = self._interval_s
        while not self._stopped.wait(pause_s):
            begin_s = time.monotonic()
            self.sample()
            pause_s = max(self._interval_s, (time.monotonic() - begin_s) / self._max_share)

    def __enter__(self) -> PeakMemory:
        self.sample()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(timeout=10.0)
        self.sample()


def _roots(root_pid: int, marker: str | None) -> Iterator[psutil.Process]:
    if psutil.pid_exists(root_pid):
        yield psutil.Process(root_pid)
    if marker is None:
        return
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARKER_NAME) == marker:
                yield process
        except psutil.Error:  # another user's, or ended
            continue


def _bytes(process: psutil.Process) -> int:
    try:
        full = process.memory_full_info()
    except psutil.AccessDenied:
        return int(process.memory_info().rss)
    return int(getattr(full, "pss", full.rss))


def _name(process: psutil.Process) -> str:
    """Ray and vLLM rename their processes: "ray::GeneratorActor", "VLLM::Worker". A path shows as its last part."""
    command = process.cmdline()
    title = command[0] if command else process.name()
    return title.split(".")[0] if "::" in title else process.name()
