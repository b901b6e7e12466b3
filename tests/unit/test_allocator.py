"""The allocator's settings do what they are for: a process that has them gets no new pages for a block it has freed."""

from __future__ import annotations

import os
import subprocess
import sys

from medvista_ray.allocator import allocator_environment

PROGRAM = """
import resource, numpy
def write():
    numpy.ones(5_000_000)  # 40 MB, freed at once
write()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    write()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def new_pages(environment: dict[str, str]) -> int:
    """Page faults of ten times 40 MB."""
    # numpy asks for large pages by itself, which would hide the difference.
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    variables = inherited | {"NUMPY_MADVISE_HUGEPAGE": "0"} | environment
    done = subprocess.run([sys.executable, "-c", PROGRAM], env=variables, check=True, capture_output=True, text=True)
    return int(done.stdout)


def test_memory_that_was_freed_is_used_again() -> None:
    assert new_pages({}) > 10_000
    assert new_pages(allocator_environment()) < 1_000
