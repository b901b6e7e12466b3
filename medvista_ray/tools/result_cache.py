"""A bounded memory of costly results by content hash: what was read in a picture, its features.

Invariant: at most `max_items` results are held, the least recently used goes first. Two calls that miss the same key
at once both compute (they agree); embeddings, which are dearer, have their own cache. Owned by the tools that read or
describe pictures.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class ResultCache(Generic[T]):
    """Maps a key to a result. Thread-safe."""

    def __init__(self, max_items: int) -> None:
        self.max_items = max_items
        self.num_made = 0
        """Results that were computed."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, T] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: str, make: Callable[[], T]) -> T:
        """The result of `key`; `make` is called, outside the lock, if it is not there."""
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        result = make()
        with self._lock:
            self.num_made += 1
            self._kept[key] = result
            while len(self._kept) > self.max_items:
                self._kept.popitem(last=False)
        return result
