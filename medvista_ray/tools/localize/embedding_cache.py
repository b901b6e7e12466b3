"""A bounded cache of image embeddings: memory first, then disk, and each made once however many ask for it.

Invariant: bytes in memory never exceed the bound (but for one embedding larger than it), the least recently used goes
first, and concurrent calls for one key run `make` once (single flight). The disk part is an optimisation: a full or
read-only disk is logged once and costs nothing but time. Files are written under a temporary name and renamed, so
that several replicas share the folder and none sees half a file.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_WRITES_PER_TRIM = 32

Embedding = NDArray[Any]


class EmbeddingCache:
    """Maps a content hash to an embedding. Thread-safe."""

    def __init__(self, max_bytes: int, folder: Path | None = None, max_disk_bytes: int = 0) -> None:
        self.max_bytes = max_bytes
        self.num_made = 0
        """Times that `make` was called."""
        self.num_hits = 0
        """Answers from memory, and waits for a call that was already making it."""
        self.num_disk_hits = 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Embedding] = OrderedDict()
        self._num_bytes = 0
        self._in_flight: dict[str, Future[Embedding]] = {}
        self._disk = _DiskCache(folder, max_disk_bytes) if folder is not None and max_disk_bytes > 0 else None

    @property
    def num_bytes(self) -> int:
        """Bytes held in memory now."""
        return self._num_bytes

    def get(self, key: str, make: Callable[[], Embedding]) -> Embedding:
        """The embedding of `key`; `make` is called if nobody has it. What `make` raises reaches everyone who waits."""
        with self._lock:
            found = self._kept.get(key)
            if found is not None:
                self._kept.move_to_end(key)
                self.num_hits += 1
                return found
            running = self._in_flight.get(key)
            future: Future[Embedding] = running or self._in_flight.setdefault(key, Future())
            self.num_hits += running is not None
        return future.result() if running else self._produce(key, make, future)

    def _produce(self, key: str, make: Callable[[], Embedding], future: Future[Embedding]) -> Embedding:
        try:
            embedding = self._from_disk_or(key, make)
        except BaseException as error:  # fault boundary: whoever waits for this key must be told, then it goes on up
            with self._lock:
                del self._in_flight[key]
            future.set_exception(error)
            raise
        with self._lock:
            del self._in_flight[key]
            self._keep(key, embedding)
        future.set_result(embedding)
        return embedding

    def _from_disk_or(self, key: str, make: Callable[[], Embedding]) -> Embedding:
        stored = self._disk.read(key) if self._disk else None
        with self._lock:
            self.num_disk_hits += stored is not None
            self.num_made += stored is None
        if stored is not None:
            return stored
        embedding = make()
        if self._disk:
            self._disk.write(key, embedding)
        return embedding

    def _keep(self, key: str, embedding: Embedding) -> None:
        self._kept[key] = embedding
        self._num_bytes += embedding.nbytes
        while self._num_bytes > self.max_bytes and len(self._kept) > 1:
            self._num_bytes -= self._kept.popitem(last=False)[1].nbytes


class _DiskCache:
    """One .npy file per embedding, oldest removed first when the folder grows past its bound."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._num_writes = 0
        self._has_warned = False

    def read(self, key: str) -> Embedding | None:
        try:
            stored: NDArray[Any] = np.load(self._path(key), allow_pickle=False)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            self._warn(error)
            return None
        return stored if stored.dtype == np.float16 else None

    def write(self, key: str, embedding: Embedding) -> None:
        temporary = self._folder / f".{key}.{uuid.uuid4().hex}.tmp"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                np.save(file, embedding, allow_pickle=False)
            os.replace(temporary, self._path(key))
            self._num_writes += 1
            if self._num_writes % _WRITES_PER_TRIM == 1:
                self._trim()
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._warn(error)

    def _trim(self) -> None:
        files = [(path.stat(), path) for path in self._folder.glob("*.npy")]
        excess = sum(stat.st_size for stat, _ in files) - self._max_bytes
        for stat, path in sorted(files, key=lambda item: item[0].st_mtime):
            if excess <= 0:
                return
            path.unlink(missing_ok=True)
            excess -= stat.st_size

    def _path(self, key: str) -> Path:
        return self._folder / f"{key}.npy"

    def _warn(self, error: Exception) -> None:
        if not self._has_warned:
            _log.warning("image embeddings are not kept on disk in %s: %s", self._folder, error)
            self._has_warned = True
