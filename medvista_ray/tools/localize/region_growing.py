"""Outline what a box or points show by its grey values: no model. The default behind `segment_prompt`.

A box: histograms of inside and outside are refined in turn, as GrabCut does with mixtures (Rother, Kolmogorov and Blake,
SIGGRAPH 2004), smoothing the posterior in place of the cut. Points: about each, the closed star-shaped curve of the
strongest edge, by dynamic programming over rays. Invariant: a mask stays in its box and holds no point labelled 0, and
time is bounded, because both look at 512 pixels at most.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.geometry import Window, box_to_window
from medvista_ray.tools.localize.finding import Prompt
from medvista_ray.types import MedImage

_SIDE = 512
"""Long side of what is looked at, in pixels."""
_MARGIN = 0.5
"""Of surroundings that a box is compared with, in box sides."""
_CORE = 0.6
"""Share of the box's sides that the first guess takes, as an ellipse."""
_NUM_BINS, _NUM_ROUNDS = 48, 8
_NUM_RAYS = 72
_REACH = 0.35
"""Length of a ray from a point, in long sides."""
_BEND = 2
"""Change of radius from ray to ray at most, in pixels."""
_LAMBDA = 1.0
"""Price of a way through what is unlike the centre."""
_CLIP = 60.0
"""Step, in display values, above which an edge counts little more: bone must not outshine every other edge."""

Grey = NDArray[np.float32]
Binary = NDArray[np.bool_]


class RegionGrowing:
    """See the module. Stateless."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        del choice, options

    def segment(self, image: MedImage, prompt: Prompt) -> tuple[Binary, float]:
        """See Segmenter. The score is the sharpness of the edge, 0..1: its mean step over the range of the values."""
        box = prompt.box or (0, 0, 1000, 1000)
        inner = box_to_window(box, image.size)
        outer = _widened(inner, image.size) if prompt.box else Window(0, 0, *image.size)
        grey = _grey(image, outer)
        tall, wide = outer.y1 - outer.y0, outer.x1 - outer.x0
        scale = grey.shape[0] / tall, grey.shape[1] / wide
        if prompt.points:
            small = _star(grey, _seeds(prompt, outer, image.size, scale))
        else:
            small = _two_classes(grey, _inside(inner, outer, grey.shape, scale))
        score = _sharpness(grey, small)
        found = np.zeros(image.size, bool)
        resized = Image.fromarray(small).resize((wide, tall), Image.Resampling.NEAREST)
        found[outer.y0 : outer.y1, outer.x0 : outer.x1] = np.asarray(resized)
        kept = np.zeros_like(found)
        kept[inner.y0 : inner.y1, inner.x0 : inner.x1] = found[inner.y0 : inner.y1, inner.x0 : inner.x1]
        return kept, score


def _widened(window: Window, size: tuple[int, int]) -> Window:
    dy, dx = (max(4, round(_MARGIN * side)) for side in (window.y1 - window.y0, window.x1 - window.x0))
    return Window(max(window.y0 - dy, 0), max(window.x0 - dx, 0), min(window.y1 + dy, size[0]), min(window.x1 + dx, size[1]))


def _grey(image: MedImage, window: Window) -> Grey:
    """Smoothed display values of that part, long side at most _SIDE."""
    from scipy.ndimage import gaussian_filter

    part = image.display()[window.y0 : window.y1, window.x0 : window.x1].mean(axis=2).astype(np.float32)
    factor = min(1.0, _SIDE / max(part.shape))
    size = max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor))
    small = np.asarray(Image.fromarray(part).resize(size, Image.Resampling.BILINEAR))
    return np.asarray(gaussian_filter(small, 0.8), dtype=np.float32)


def _inside(inner: Window, outer: Window, shape: tuple[int, ...], scale: tuple[float, float]) -> Binary:
    y0, y1 = (round((y - outer.y0) * scale[0]) for y in (inner.y0, inner.y1))
    x0, x1 = (round((x - outer.x0) * scale[1]) for x in (inner.x0, inner.x1))
    inside = np.zeros(shape, bool)
    inside[y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)] = True
    return inside


def _two_classes(grey: Grey, inside: Binary) -> Binary:
    """What in the box looks unlike the surroundings and like the box's core."""
    from scipy.ndimage import gaussian_filter

    bins = np.minimum(grey / 256.0 * _NUM_BINS, _NUM_BINS - 1).astype(np.int32)
    found = _ellipse(inside)
    sigma = max(0.5, 0.015 * max(_sides(inside)))
    for _ in range(_NUM_ROUNDS):
        front, back = _histogram(bins[found]), _histogram(bins[~found])
        posterior = front / (front + back)
        better = (gaussian_filter(posterior[bins], sigma) > 0.5) & inside
        if not better.any() or np.array_equal(better, found):
            break
        found = better
    return _largest(found)


def _histogram(values: NDArray[np.int32]) -> Grey:
    """Smoothed frequencies of grey bins, never 0."""
    from scipy.ndimage import gaussian_filter1d

    counts = np.bincount(values, minlength=_NUM_BINS).astype(np.float32)
    smooth = gaussian_filter1d(counts / max(float(counts.sum()), 1.0), 1.0) + 1e-4
    return np.asarray(smooth, dtype=np.float32)


def _sides(inside: Binary) -> tuple[int, int]:
    return int(inside.any(axis=1).sum()), int(inside.any(axis=0).sum())


def _ellipse(inside: Binary) -> Binary:
    """The middle of a rectangle."""
    rows, columns = np.flatnonzero(inside.any(axis=1)), np.flatnonzero(inside.any(axis=0))
    y = (np.arange(inside.shape[0]) - rows.mean()) / max(1.0, _CORE * len(rows) / 2)
    x = (np.arange(inside.shape[1]) - columns.mean()) / max(1.0, _CORE * len(columns) / 2)
    return (y[:, None] ** 2 + x[None, :] ** 2 <= 1.0) & inside


def _largest(found: Binary) -> Binary:
    """The largest component, holes filled."""
    from scipy.ndimage import binary_fill_holes, label

    result: Any = label(found)
    sizes = np.bincount(result[0].ravel())
    if len(sizes) < 2:
        return found
    return np.asarray(binary_fill_holes(result[0] == 1 + int(np.argmax(sizes[1:]))))


def _seeds(prompt: Prompt, outer: Window, size: tuple[int, int], scale: tuple[float, float]) -> list[tuple[int, int, int]]:
    """Row, column and label of each point in what is looked at."""
    seeds: list[tuple[int, int, int]] = []
    for (x, y), label in zip(prompt.points, prompt.labels, strict=True):
        row, column = min(y * size[0] // 1000, size[0] - 1), min(x * size[1] // 1000, size[1] - 1)
        row, column = min(max(row, outer.y0), outer.y1 - 1), min(max(column, outer.x0), outer.x1 - 1)
        seeds.append((int((row - outer.y0) * scale[0]), int((column - outer.x0) * scale[1]), label))
    return seeds


def _star(grey: Grey, seeds: list[tuple[int, int, int]]) -> Binary:
    """The union of the star-shaped outlines about the points labelled 1, less what lies behind a point labelled 0."""
    found = np.zeros(grey.shape, bool)
    outside = [(row, column) for row, column, label in seeds if label == 0]
    for row, column, label in seeds:
        if label == 1:
            found |= _outlined(grey, (row, column), outside)
    return found


def _outlined(grey: Grey, center: tuple[int, int], outside: list[tuple[int, int]]) -> Binary:
    """The closed curve about `center` that follows the strongest step which lies before everything unlike the centre."""
    from skimage.draw import polygon2mask

    angles = np.arange(_NUM_RAYS) * (2 * np.pi / _NUM_RAYS)
    directions = np.stack([np.sin(angles), np.cos(angles)], axis=1)
    gain = _gain(_rays(grey, center, directions))
    for row, column in outside:
        dy, dx = row - center[0], column - center[1]
        ray = round(np.arctan2(dy, dx) / (2 * np.pi) * _NUM_RAYS) % _NUM_RAYS
        near = [(ray + turn) % _NUM_RAYS for turn in (-1, 0, 1)]
        gain[near, min(int(np.hypot(dy, dx)), gain.shape[1] - 1) :] = -np.inf
    radii = _best_curve(gain) + 0.5
    found = polygon2mask(grey.shape, center + directions * radii[:, None])
    for row, column in outside:
        found[row, column] = False
    return found


def _rays(grey: Grey, center: tuple[int, int], directions: NDArray[np.float64]) -> Grey:
    """[rays, radii] values from the centre outwards; beyond the border, the border's."""
    from scipy.ndimage import map_coordinates

    radii = np.arange(max(8, round(_REACH * max(grey.shape))))
    points = np.asarray(center)[:, None, None] + directions.T[:, :, None] * radii
    return map_coordinates(grey, points, order=1, mode="nearest").astype(np.float32)


def _gain(rays: Grey) -> Grey:
    """[rays, radii]: the step there, less how unlike the centre the way to it is."""
    from scipy.ndimage import uniform_filter1d

    middle = float(np.median(rays[:, :3]))
    means = uniform_filter1d(rays, 3, axis=1)
    step = _CLIP * np.tanh(np.abs(np.roll(means, -2, axis=1) - np.roll(means, 2, axis=1)) / _CLIP)
    unlike = np.cumsum(np.abs(rays - middle), axis=1) / np.arange(1, rays.shape[1] + 1)
    gain = step - _LAMBDA * unlike
    gain[:, :2] = gain[:, -3:] = -np.inf
    return gain


def _best_curve(gain: Grey) -> NDArray[np.intp]:
    """[rays] radii of the closed curve of largest gain whose radius changes by at most _BEND from ray to ray.

    Dynamic programming over two turns; the middle of the way is closed.
    """
    turns = np.concatenate([gain, gain])
    total, came_from = turns[0], np.zeros(turns.shape, np.intp)
    for number in range(1, len(turns)):
        shifted = np.stack([_shift(total, step) for step in range(-_BEND, _BEND + 1)])
        choice = shifted.argmax(axis=0)
        came_from[number] = np.clip(np.arange(gain.shape[1]) - (choice - _BEND), 0, gain.shape[1] - 1)
        total = shifted.max(axis=0) + turns[number]
    radius = int(total.argmax())
    radii = np.zeros(len(turns), np.intp)
    for number in range(len(turns) - 1, -1, -1):
        radii[number] = radius
        radius = int(came_from[number, radius])
    half = _NUM_RAYS // 2
    return np.roll(radii[half : half + _NUM_RAYS], half)


def _shift(values: Grey, step: int) -> Grey:
    """Values moved up by `step`, nothing from beyond the ends."""
    out = np.full_like(values, -np.inf)
    if step >= 0:
        out[step:] = values[: len(values) - step]
    else:
        out[:step] = values[-step:]
    return out


def _sharpness(grey: Grey, found: Binary) -> float:
    """Mean step across the edge, over the range of the values."""
    from scipy.ndimage import binary_dilation, binary_erosion

    core, reach = (np.asarray(turn(found, iterations=2), dtype=bool) for turn in (binary_erosion, binary_dilation))
    within, around = found & ~core, reach & ~found
    spread = float(grey.max() - grey.min())
    if not within.any() or not around.any() or spread == 0.0:
        return 0.0
    return min(1.0, abs(float(grey[within].mean() - grey[around].mean())) / spread)
