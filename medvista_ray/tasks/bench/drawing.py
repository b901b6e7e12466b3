"""Drawing lots for the families: crops, windows, flips and boxes, all from one seeded generator.

Invariant: every choice comes from the generator that is passed in, so a task is a function of (seed, split, family, index).
Called by the families only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.pictures import CT_WINDOWS, plate, volume
from medvista_ray.tasks.bench.subjects import Subject
from medvista_ray.types import Box


def log_uniform(rng: Generator, low: float, high: float) -> float:
    """A draw whose logarithm is uniform."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def draw_view(rng: Generator, subject: Subject, side: int | None = None) -> dict[str, Any]:
    """A recipe without words: a slice, a square crop of `side` pixels (or a random one), flips and a window."""
    name = subject.plates[int(rng.integers(len(subject.plates)))]
    recipe: dict[str, Any] = {"plate": name}
    if subject.is_volume:
        scan = volume(name)
        num_slices, height, width = scan.values.shape
        recipe["slice"] = int(rng.integers(num_slices // 8, num_slices - num_slices // 8))
    else:
        height, width = plate(name).pixels.shape[:2]
    full = min(height, width)
    side = min(full, side or int(full * rng.uniform(0.6, 1.0)))
    row, col = (int(rng.integers(0, extent - side + 1)) for extent in (height, width))
    recipe["crop"] = [row, col, side, side]
    recipe["flip"] = [bool(rng.integers(2)), bool(rng.integers(2))]
    recipe["window"] = draw_window(rng, subject, recipe)
    return recipe


def draw_window(rng: Generator, subject: Subject, recipe: dict[str, Any]) -> list[float] | None:
    """A CT preset, or the plate's own range stretched at random; None for colour."""
    if subject.modality == "CT" and subject.is_volume:
        return list(CT_WINDOWS[int(rng.integers(len(CT_WINDOWS)))])
    values = volume(recipe["plate"]).values[recipe["slice"]] if subject.is_volume else plate(recipe["plate"]).pixels
    if values.ndim == 3:
        return None
    low, high = np.percentile(values[::4, ::4], [0.5, 99.7])
    return [float(low), float(low + max(high - low, 1.0) * rng.uniform(0.8, 1.2))]


def draw_box(rng: Generator, width: int, height: int, margin: int = 10) -> Box:
    """A box of that size (0..1000 units), anywhere at least `margin` inside the picture."""
    x0 = int(rng.integers(margin, 1000 - margin - width + 1))
    y0 = int(rng.integers(margin, 1000 - margin - height + 1))
    return x0, y0, x0 + width, y0 + height


def loosen(rng: Generator, box: Box, low: float, high: float) -> Box:
    """The box with each edge moved outwards by a random share (low..high) of its side, kept inside the picture."""
    x0, y0, x1, y1 = box
    shares = rng.uniform(low, high, size=4)
    width, height = x1 - x0, y1 - y0
    edges = (x0 - shares[0] * width, y0 - shares[1] * height, x1 + shares[2] * width, y1 + shares[3] * height)
    return clip_box(edges)


def jitter(rng: Generator, box: Box, sigma: float) -> Box:
    """The box with each edge moved by a normal share of its side (the scripted expert's imprecise hand)."""
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    shift = rng.normal(0.0, sigma, size=4)
    return clip_box((x0 + shift[0] * width, y0 + shift[1] * height, x1 + shift[2] * width, y1 + shift[3] * height))


def clip_box(edges: tuple[float, float, float, float]) -> Box:
    """Round to integers 0..999 and keep at least 5 units of width and height."""
    x0, y0 = (int(np.clip(round(edge), 0, 990)) for edge in edges[:2])
    x1 = int(np.clip(round(edges[2]), x0 + 5, 999))
    y1 = int(np.clip(round(edges[3]), y0 + 5, 999))
    return x0, y0, x1, y1


def middle_in(box: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether the middle of a box lies in another."""
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return other[0] <= x <= other[2] and other[1] <= y <= other[3]


def written(box: Box) -> str:
    """The box as a question writes it."""
    return f"[{box[0]}, {box[1]}, {box[2]}, {box[3]}]"


def pick(rng: Generator, items: Any) -> Any:
    """One of a sequence."""
    return items[int(rng.integers(len(items)))]
