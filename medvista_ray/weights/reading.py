"""Reads published weights: a segment of shared memory, a file in the safetensors format, or a model folder of them.

Invariant: nothing is copied; what is yielded are views. Called in the engine's process.
"""

from __future__ import annotations

import json
import mmap
import os
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from medvista_ray.weights.segment import DTYPES, MAX_SEGMENTS, Bytes

if TYPE_CHECKING:
    import torch

_NAMES = {code: name for name, code in DTYPES.items()}


def read_tensors(path: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of the tensors in a segment or file, or in a model folder's files; nothing is copied.

    Raises what safetensors raises.
    """
    from safetensors import safe_open

    for file in sorted(path.glob("*.safetensors")) if path.is_dir() else [path]:
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - no mapping, it only has keys()
                yield name, tensors.get_tensor(name)


class SegmentReader:
    """Reads the segments that a publisher writes in turn, and keeps them mapped: what is read a second time is there,
    where a new mapping of it would cost a page fault for every few pages, which together take longer than the copy."""

    def __init__(self, max_mapped: int = MAX_SEGMENTS) -> None:
        self._max_mapped = max_mapped
        self._mapped: OrderedDict[tuple[int, int, int], _Mapped] = OrderedDict()
        """By device, inode and size; the one read last at the end. What is mapped keeps its inode."""

    def read(self, path: Path) -> Iterator[tuple[str, torch.Tensor]]:
        """Views of the tensors, valid as long as the caller holds the version (`manifest.Held`) or keeps a view of it.

        A file, or a folder of them, is read by `read_tensors`.
        """
        if _is_named(path):
            return read_tensors(path)
        return iter(self._map(path).tensors().items())

    def close(self) -> None:
        """Forget all mappings. Idempotent."""
        self._mapped.clear()

    def _map(self, path: Path) -> _Mapped:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            of = os.fstat(fd)
            key = of.st_dev, of.st_ino, of.st_size
            if key not in self._mapped:
                flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
                self._mapped[key] = _Mapped(np.frombuffer(mmap.mmap(fd, of.st_size, flags, mmap.PROT_READ), np.uint8))
        finally:
            os.close(fd)
        self._mapped.move_to_end(key)
        while len(self._mapped) > self._max_mapped:
            self._mapped.popitem(last=False)
        return self._mapped[key]


def _is_named(path: Path) -> bool:
    """Whether it stands in a folder; a segment, which has no name, is reached through a descriptor alone."""
    return path.is_dir() or os.stat(path).st_nlink > 0


class _Mapped:
    """A segment's bytes, and the views that were made of them: the next version lies as the last one did."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._layout: dict[str, Any] = {}
        self._tensors: dict[str, torch.Tensor] = {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The tensors that are there now, as `Layout` put them."""
        begin = 8 + int.from_bytes(self._data[:8].tobytes(), "little")
        layout: dict[str, Any] = json.loads(self._data[8:begin].tobytes())
        layout["__metadata__"] = begin  # in place of the key, which differs each time
        if layout != self._layout or list(layout) != list(self._layout):
            self._layout, self._tensors = layout, dict(_views(self._data, layout, begin))
        return self._tensors


def _views(data: Bytes, layout: dict[str, Any], begin: int) -> Iterator[tuple[str, torch.Tensor]]:
    import torch

    with warnings.catch_warnings(action="ignore", category=UserWarning):  # torch knows no memory that is only read
        content = torch.from_numpy(data)[begin:]
    for name, entry in layout.items():
        if name != "__metadata__":
            first, end = entry["data_offsets"]
            yield name, content[first:end].view(getattr(torch, _NAMES[entry["dtype"]])).view(entry["shape"])
