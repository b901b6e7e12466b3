"""How a picture looks to the policy: windowed, square, antialiased. The only place that resizes for the context.

Invariant: deterministic, so that one picture has one content hash in the engine's caches and one encoding in the
learner. Called by the loop, and by whoever builds training batches from tasks.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.types import MedImage


def policy_picture(image: MedImage, side: int) -> NDArray[np.uint8]:
    """[side, side, 3] uint8. Both axes are scaled to `side`, so 0..1000 coordinates keep their meaning."""
    shown = image.display()
    if shown.shape[:2] == (side, side):
        return shown
    scaled = Image.fromarray(shown).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(scaled, dtype=np.uint8)
