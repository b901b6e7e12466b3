"""Between boxes in 0..1000, pixels and millimetres; shapes of masks. Pure numpy.

Conventions: pixel (row r, column c) covers [r, r+1) x [c, c+1); points are (y, x) in pixels unless a name ends in _mm.
Suffixes: N points, H rows, W columns.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medvista_ray.types import Box

Floats = NDArray[np.float64]


class Window(NamedTuple):
    """A rectangle of whole pixels, ends excluded."""

    y0: int
    x0: int
    y1: int
    x1: int


class Extent(NamedTuple):
    """Axes of a shape, in the unit of its points."""

    long_axis: float
    short_axis: float


def box_to_window(box: Box, size: tuple[int, int]) -> Window:
    """The pixels that `box` (0..1000) touches in a picture of `size` (height, width); never empty."""
    height, width = size
    x0, y0, x1, y1 = box
    left, top = min(x0 * width // 1000, width - 1), min(y0 * height // 1000, height - 1)
    return Window(top, left, max(math.ceil(y1 * height / 1000), top + 1), max(math.ceil(x1 * width / 1000), left + 1))


def window_to_box(window: Window, size: tuple[int, int]) -> Box:
    """The smallest box (0..1000) that holds `window`."""
    height, width = size
    return (
        window.x0 * 1000 // width,
        window.y0 * 1000 // height,
        math.ceil(window.x1 * 1000 / width),
        math.ceil(window.y1 * 1000 / height),
    )


def mask_window(mask: NDArray[np.bool_]) -> Window:
    """Bounding rectangle of a mask [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return Window(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)


def grow(low: int, high: int, length: int, limit: int) -> tuple[int, int]:
    """Widen [low, high) about its centre to at least `length` (or `limit`), shifted to stay within [0, limit)."""
    length = min(max(length, high - low), limit)
    start = min(max((low + high - length) // 2, 0), limit - length)
    return start, start + length


def outline(mask: NDArray[np.bool_]) -> Floats:
    """[N, 2] points (y, x) whose convex hull is the mask's: side mid-points of each row's first and last pixel.

    Mid-points, not corners: the extent of a digitised disc is then its diameter, and of an upright rectangle its side.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    first = mask[rows].argmax(axis=1)
    last = mask.shape[1] - 1 - mask[rows, ::-1].argmax(axis=1)
    centres = np.concatenate([np.stack([rows, first], axis=1), np.stack([rows, last], axis=1)]) + 0.5
    sides = np.array([(-0.5, 0.0), (0.5, 0.0), (0.0, -0.5), (0.0, 0.5)])
    return (centres[:, None, :] + sides[None, :, :]).reshape(-1, 2).astype(np.float64)


def extent(points: Floats) -> Extent:
    """Largest distance between two of `points` [N, 2], and the width of the set perpendicular to it."""
    hull = _convex_hull(points)
    gaps = hull[:, None, :] - hull[None, :, :]
    lengths = np.hypot(gaps[..., 0], gaps[..., 1])
    i, j = np.unravel_index(int(lengths.argmax()), lengths.shape)
    long_axis = float(lengths[i, j])
    if long_axis == 0.0:
        return Extent(0.0, 0.0)
    along = gaps[i, j] / long_axis
    across = hull @ np.array([-along[1], along[0]])
    return Extent(long_axis, float(across.max() - across.min()))


def _convex_hull(points: Floats) -> Floats:
    """[M, 2] hull by Andrew's monotone chain; O(N log N)."""
    ordered = np.unique(points, axis=0)
    if len(ordered) < 3:
        return ordered
    listed = [(float(y), float(x)) for y, x in ordered]
    chain = _half_hull(listed)[:-1] + _half_hull(listed[::-1])[:-1]
    return np.array(chain)


def _half_hull(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    chain: list[tuple[float, float]] = []
    for point in points:
        while len(chain) > 1 and _turn(chain[-2], chain[-1], point) <= 0:
            chain.pop()
        chain.append(point)
    return chain


def _turn(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> float:
    """> 0 if a, b, c turn left."""
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])
