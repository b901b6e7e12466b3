"""Weights as one stretch of anonymous shared memory, in the safetensors format, that other processes map.

Invariants: a segment has no name in any folder, so that the kernel takes it back with the last process that holds it,
however that process ended; what is held (`manifest.Held`) is never overwritten; tensors are copied once, into memory
that the version before the previous one leaves behind (fresh pages cost several times the copy). Called by the
publishers and by the relay of a node.
"""

from __future__ import annotations

import fcntl
import json
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import psutil
from numpy.typing import NDArray

from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import KEY

if TYPE_CHECKING:
    import torch

Bytes = NDArray[np.uint8]
"""[number of bytes]"""

MAX_SEGMENTS = 3
"""The newest, the one that engines still leave, and the one that is written."""
_HEADROOM_BYTES = 64 << 20
DTYPES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16",
    "int64": "I64", "int32": "I32", "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL",
}  # fmt: skip
"""Of torch -> of safetensors."""


@dataclass(frozen=True)
class Layout:
    """Where each tensor's bytes lie behind the header, and the tensors themselves."""

    header: bytes
    """Length and JSON, as safetensors begins."""
    tensors: tuple[torch.Tensor, ...]
    """In the order of their bytes."""

    @classmethod
    def of(cls, named_tensors: Iterable[tuple[str, torch.Tensor]], key: str) -> Layout:
        """Raises WeightUpdateError if there is no tensor, or one of a type that safetensors does not know."""
        # Wide types first: then every tensor is aligned without gaps, which the format forbids.
        named = sorted(named_tensors, key=lambda item: -item[1].element_size())
        if not named:
            raise WeightUpdateError("no tensors to publish")
        entries: dict[str, Any] = {"__metadata__": {KEY: key}}
        end = 0
        for name, tensor in named:
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype not in DTYPES:
                raise WeightUpdateError(f"{name} has the type {dtype}, which cannot be published")
            begin, end = end, end + tensor.nbytes
            entries[name] = {"dtype": DTYPES[dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 64)
        return cls(len(text).to_bytes(8, "little") + text, tuple(tensor for _, tensor in named))

    @property
    def num_bytes(self) -> int:
        """Of header and tensors."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    def pieces(self) -> Iterator[Bytes]:
        """Header and tensors, one after the other; each tensor comes to this machine's memory only then."""
        import torch

        yield np.frombuffer(self.header, np.uint8)
        for tensor in self.tensors:
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def buckets(pieces: Iterable[Bytes], bucket_bytes: int) -> Iterator[list[Bytes]]:
    """The same bytes in portions of `bucket_bytes` (the last may be smaller), nothing copied."""
    bucket: list[Bytes] = []
    room = bucket_bytes
    for piece in pieces:
        while len(piece):
            part, piece = piece[:room], piece[room:]
            bucket.append(part)
            room -= len(part)
            if room == 0:
                yield bucket
                bucket, room = [], bucket_bytes
    if bucket:
        yield bucket


class Segment:
    """Shared memory of a fixed size, mapped in this process."""

    def __init__(self, name: str, num_bytes: int) -> None:
        """`name` shows in /proc/*/maps. Raises WeightUpdateError if the machine has not so much memory free."""
        free = psutil.virtual_memory().available
        if num_bytes + _HEADROOM_BYTES > free:
            raise WeightUpdateError(
                f"{num_bytes / 2**20:.0f} MiB of weights do not fit, {free / 2**20:.0f} MiB of memory are free"
            )
        self.num_bytes = num_bytes
        self._fd = os.memfd_create(name, os.MFD_CLOEXEC)
        os.ftruncate(self._fd, num_bytes)
        self._bytes: Bytes = np.frombuffer(mmap.mmap(self._fd, num_bytes), np.uint8)

    @property
    def path(self) -> str:
        """Where processes of this user on this node open it, while this process has it open."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def claim(self) -> bool:
        """Whether nobody holds it; then nobody can until `release`."""
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """The inverse of a successful `claim`."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    def write(self, pieces: Iterable[Bytes], observe: Callable[[Bytes], None] | None = None) -> None:
        """Copy the pieces one behind the other; `observe`, if given, sees each where it lies now."""
        end = 0
        for piece in pieces:
            begin, end = end, end + len(piece)
            self._bytes[begin:end] = piece
            if observe:
                observe(self._bytes[begin:end])

    def close(self) -> None:
        """Let go of it; whoever holds it still reads it."""
        os.close(self._fd)
        self._bytes = np.empty(0, np.uint8)


class SegmentPool:
    """A publisher's segments: written in turn, the newest never overwritten."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._segments: list[Segment] = []
        """From the oldest to the newest."""

    def write(self, num_bytes: int, pieces: Iterable[Bytes], observe: Callable[[Bytes], None] | None = None) -> Segment:
        """A segment that holds the pieces. Raises WeightUpdateError if there is no memory for it."""
        segment = self._take(num_bytes) or Segment(self._name, num_bytes)
        try:
            segment.write(pieces, observe)
        except BaseException:  # no fault boundary: whatever it was goes on, and the memory does not stay behind
            segment.close()
            raise
        segment.release()
        self._segments.append(segment)
        return segment

    def close(self) -> None:
        """Let go of all. Idempotent."""
        while self._segments:
            self._segments.pop().close()

    def _take(self, num_bytes: int) -> Segment | None:
        """An older segment of that size that nobody holds."""
        for segment in self._segments[:-1]:
            if segment.num_bytes == num_bytes and segment.claim():
                self._segments.remove(segment)
                return segment
        while len(self._segments) >= MAX_SEGMENTS:
            self._segments.pop(0).close()
        return None
