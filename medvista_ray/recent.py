"""The latest results of a costly pure function, by key. Thread-safe; two callers of one new key may both compute it.

Invariant: never more than `max_entries` are kept, the least recently used goes first. For small results of which the
number is bound enough; `tools.localize.embedding_cache` bounds bytes, keeps a disk copy and computes each once.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

V = TypeVar("V")


class Recent(Generic[V]):
    """Maps keys to values."""

    def __init__(self, max_entries: int) -> None:
        self.max_entries = max_entries
        self.num_made = 0
        self._values: OrderedDict[Hashable, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], V]) -> V:
        """The value of `key`, from `make` if it is not among the latest."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self.num_made += 1
            self._values[key] = value
            while len(self._values) > self.max_entries:
                self._values.popitem(last=False)
        return value
