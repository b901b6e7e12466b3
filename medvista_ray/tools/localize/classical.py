"""What classical computation can find in a picture, by name; for anything else it says that it cannot.

The vocabulary is closed on purpose: bright and dark structures in any picture; the body where it stands in front of a
background; lungs and bone in CT (by Hounsfield units); nuclei in microscopy; burned-in text. Invariant: what is found
depends on the pixels, and on the phrase only through the vocabulary. Each map of findings is computed once per picture
content and kept within a bound. The default behind `ground` and `segment_text`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.geometry import Window, window_to_box
from medvista_ray.tools.localize import structures
from medvista_ray.tools.localize.embedding_cache import EmbeddingCache
from medvista_ray.tools.localize.finding import Finding, Outline
from medvista_ray.tools.refine.resampling import plain, resample
from medvista_ray.types import MedImage

Finder = Callable[[MedImage], NDArray[np.int32]]
"""A picture to its label map [H, W]: 0 is nothing, each thing has a number. Raises ToolArgumentError if out of place."""

FINDERS: Mapping[str, Finder] = {
    "bright structure": structures.bright,
    "dark structure": structures.dark,
    "body": structures.body,
    "lung": structures.lungs,
    "bone": structures.bones,
    "nucleus": structures.nuclei,
    "text": structures.text,
}
_ALIASES = {
    "nuclei": "nucleus",
    "cell nuclei": "nucleus",
    "cell nucleus": "nucleus",
    "letter": "text",
    "marker": "text",
    "side marker": "text",
    "burned-in text": "text",
    "body outline": "body",
    "patient": "body",
    "head": "body",
    "skeleton": "bone",
    "lung field": "lung",
}
_THINGS = ("area", "region", "spot", "object", "lesion", "mass", "thing")
"""A bright or a dark one of these is a bright or dark structure: that it is one of them, nobody here can say."""
_MAX_FOUND = 200
_MAX_SIDE = 2048
"""Long side of what is looked at, in pixels: time must be bounded."""
_RING_PX = 5
"""Width of the surroundings that a thing is compared with."""
_MIB = 1 << 20


class ClassicalGrounder:
    """Looks a phrase up and computes. Thread-safe."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        del choice
        self.cache = EmbeddingCache(options.embedding_cache_mib * _MIB)

    def find(self, image: MedImage, phrase: str, box_threshold: float, text_threshold: float) -> list[Finding]:
        """See Grounder. `text_threshold` means nothing here: a phrase is in the vocabulary or it is not."""
        del text_threshold
        name = known_name(phrase)
        labels = self.cache.get(f"{name}-{image.key}", lambda: _label_map(image, name))
        return _findings(image, labels, name, box_threshold)


def _label_map(image: MedImage, name: str) -> NDArray[np.int32]:
    """Of a large picture, that of a smaller copy on the picture's grid."""
    factor = _MAX_SIDE / max(image.size)
    if factor >= 1.0:
        return FINDERS[name](image)
    height, width = image.size
    small = resample(image.pixels, max(1, round(height * factor)), max(1, round(width * factor)))
    labels = FINDERS[name](replace(plain(image, image.pixels), pixels=small))
    return np.asarray(Image.fromarray(labels).resize((width, height), Image.Resampling.NEAREST))


def known_name(phrase: str) -> str:
    """The vocabulary's name of what `phrase` asks for. Raises ToolArgumentError if there is none."""
    words = re.sub(r"^(all |the |a |an |any )+", "", " ".join(phrase.lower().strip(" .?!").split()))
    words = re.sub(
        r"\b(brightest|hyperdense|hyperintense)\b", "bright", re.sub(r"\b(darkest|hypodense|hypointense)\b", "dark", words)
    )
    for name in (words, words.removesuffix("s")):
        name = _ALIASES.get(name, name)
        tone, _, thing = name.partition(" ")
        if tone in ("bright", "dark") and thing in _THINGS:
            name = f"{tone} structure"
        if name in FINDERS:
            return name
    raise ToolArgumentError(f"cannot find {phrase[:40]!r} by computation; can find: {', '.join(FINDERS)}")


def _findings(image: MedImage, labels: NDArray[np.int32], name: str, threshold: float) -> list[Finding]:
    """The things of a label map that stand out enough, best first, at most _MAX_FOUND (the largest)."""
    from scipy.ndimage import find_objects

    grey = image.display().astype(np.float32).mean(axis=2)
    sizes = np.bincount(labels.ravel())
    parts: list[Any] = find_objects(labels)
    largest = sorted((i for i, part in enumerate(parts, 1) if part is not None), key=lambda i: -int(sizes[i]))[:_MAX_FOUND]
    found = [_finding(grey, labels, number, parts[number - 1], name) for number in largest]
    kept = [finding for finding in found if finding.score >= threshold]
    return sorted(kept, key=lambda finding: -finding.score)


def _finding(grey: NDArray[np.float32], labels: NDArray[np.int32], number: int, part: tuple[slice, slice], name: str) -> Finding:
    rows, columns = part
    size = labels.shape[0], labels.shape[1]
    window = Window(rows.start, columns.start, rows.stop, columns.stop)
    around = tuple(slice(max(s.start - _RING_PX, 0), s.stop + _RING_PX) for s in part)
    score = _contrast(grey[around], labels[around] == number)
    return Finding(window_to_box(window, size), score, name, Outline(window, labels[part] == number, size))


def _contrast(grey: NDArray[np.float32], inside: NDArray[np.bool_]) -> float:
    """How well one grey level parts inside from outside: the larger of both ways' area under the ROC curve, as 0..1.

    0: the values of both are mixed; 1: no value of one is among the other's.
    """
    from scipy.stats import rankdata

    num_inside, num_outside = int(inside.sum()), int((~inside).sum())
    if num_outside == 0:
        return 0.0
    ranks = rankdata(grey.ravel())[inside.ravel()]
    area = (float(ranks.sum()) - num_inside * (num_inside + 1) / 2) / (num_inside * num_outside)
    return abs(2.0 * area - 1.0)
