"""How a picture looks to the policy: windowed, square, antialiased. The only place that resizes for the context.

Invariant: deterministic, so that one picture has one content hash in the engine's caches and one encoding in the
learner. Called by the loop, and by whoever builds training batches from tasks.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.types import MedImage

CACHE_ENTRIES = 256
"""Scaled pictures that are remembered: a group asks for each of its task's once per episode."""


def policy_picture(image: MedImage, side: int) -> NDArray[np.uint8]:
    """[side, side, 3] uint8, not to be written to. Both axes are scaled to `side`, so 0..1000 coordinates keep their
    meaning."""
    return _CACHE.get(image, side)


class _PictureCache:
    """The latest pictures by content hash and side. Thread-safe."""

    def __init__(self, max_entries: int) -> None:
        self._max_entries = max_entries
        self._pictures: OrderedDict[tuple[str, int], NDArray[np.uint8]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, image: MedImage, side: int) -> NDArray[np.uint8]:
        key = (image.key, side)
        with self._lock:
            if key in self._pictures:
                self._pictures.move_to_end(key)
                return self._pictures[key]
        picture = _scaled(image, side)
        picture.flags.writeable = False
        with self._lock:
            self._pictures[key] = picture
            while len(self._pictures) > self._max_entries:
                self._pictures.popitem(last=False)
        return picture


_CACHE = _PictureCache(CACHE_ENTRIES)


def _scaled(image: MedImage, side: int) -> NDArray[np.uint8]:
    shown = image.display()
    if shown.shape[:2] == (side, side):
        return shown.copy()
    scaled = Image.fromarray(shown).resize((side, side), Image.Resampling.BICUBIC)
    return np.array(scaled, dtype=np.uint8)
