"""How a picture looks to the policy: windowed, square, antialiased. The only place that resizes for the context.

Invariant: deterministic, so that one picture has one content hash in the engine's caches and one encoding in the
learner. Called by the loop, and by whoever builds training batches from tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.recent import Recent
from medvista_ray.types import MedImage

CACHE_ENTRIES = 256
"""Scaled pictures that are remembered: a group asks for each of its task's once per episode."""


_CACHE: Recent[NDArray[np.uint8]] = Recent(CACHE_ENTRIES)


def policy_picture(image: MedImage, side: int) -> NDArray[np.uint8]:
    """[side, side, 3] uint8, not to be written to. Both axes are scaled to `side`, so 0..1000 coordinates keep their
    meaning."""
    return _CACHE.get((image.key, side), lambda: _scaled(image, side))


def _scaled(image: MedImage, side: int) -> NDArray[np.uint8]:
    picture = image.display()
    if picture.shape[:2] != (side, side):
        picture = np.array(Image.fromarray(picture).resize((side, side), Image.Resampling.BICUBIC), dtype=np.uint8)
    picture.flags.writeable = False
    return picture
