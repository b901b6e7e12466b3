"""How the processes of a run get their memory: glibc's allocator is told to keep what is freed.

By default glibc gives every large block (at first 128 KiB, later 32 MiB) back to the kernel when it is freed and asks for
new pages at the next operation. Writing to a new page costs several times what an element-wise operation does with it
(measured in a virtual machine: GELU over 64 MiB 67 ms with new pages, 18 ms with kept ones). Inert where the C library is
another one: the variables then mean nothing. Called by
`main_job`, which hands them to all actors and replicas.
"""

from __future__ import annotations

from typing import Final

KEPT_BYTES: Final = 1 << 30
"""What a process may keep beyond what it uses."""
GROWTH_BYTES: Final = 64 << 20
"""Asked of the kernel at a time."""


def allocator_environment() -> dict[str, str]:
    """Environment variables for processes that compute; read once, when a process starts (mallopt(3), torch's c10)."""
    return {
        "MALLOC_MMAP_MAX_": "0",
        "MALLOC_TRIM_THRESHOLD_": str(KEPT_BYTES),
        "MALLOC_TOP_PAD_": str(GROWTH_BYTES),
        # Threads with arenas of their own would each keep memory, and map large blocks anew all the same.
        "MALLOC_ARENA_MAX": "1",
        # 2 MiB pages for large tensors: a fault brings 512 times as much.
        "THP_MEM_ALLOC_ENABLE": "1",
    }
