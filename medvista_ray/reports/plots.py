"""Curves and bars as inline SVG, drawn without a plotting library: they follow the page's colours, light or dark.

Owns the drawing only. Every label is escaped. Colours are the CSS classes s0, s1, ... of `page.css`. Called by `html`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from medvista_ray.reports.statistics import Interval

WIDTH, HEIGHT = 330, 185
"""Of a curve; about the width it is shown at, so that 12 px of text stay 12 px."""
BARS_WIDTH = 440
LEFT, RIGHT, TOP, BOTTOM = 42, 10, 10, 26
MAX_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One curve: y over x, with gaps where y is missing."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class Scale:
    """Maps values low..high to pixels start..end."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + share * (self.end - self.start)


def smooth(values: Sequence[float], radius: int) -> list[float]:
    """Centred moving mean over 2 * radius + 1 values, shorter at the ends."""
    windows = (values[max(0, i - radius) : i + radius + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def ticks(low: float, high: float, num: int = 4) -> list[float]:
    """About `num` round numbers inside low..high."""
    if not high > low:
        return [low]
    raw = (high - low) / num
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def line_chart(
    series: Sequence[Series], label: str, bounds: tuple[float, float] | None = None, floor: float | None = None
) -> str:
    """Curves over training steps, raw (faint) and smoothed; `bounds` fixes the y axis, `floor` its lower end.

    Empty string if no series has a value.
    """
    drawn = [(index, item, _points(item)) for index, item in enumerate(series)]
    drawn = [(index, item, points) for index, item, points in drawn if points]
    if not drawn:
        return ""
    everything = [point for _, _, points in drawn for point in points]
    xs, ys = [x for x, _ in everything], [y for _, y in everything]
    low, high = bounds or _range(ys, floor)
    x_scale = Scale(min(xs), max(xs), LEFT, WIDTH - RIGHT)
    y_scale = Scale(low, high, HEIGHT - BOTTOM, TOP)
    parts = [_y_axis(y_scale), _x_axis(x_scale)]
    for index, item, points in drawn:
        parts.append(_curve(index, item.name, points, x_scale, y_scale))
    return _svg("".join(parts), label, HEIGHT)


def interval_bars(bars: Mapping[str, Interval], label: str) -> str:
    """Horizontal bars with their 95 % intervals, on 0..100 %."""
    row, left = 34, 122
    height = row * len(bars) + BOTTOM
    scale = Scale(0.0, 1.0, left, BARS_WIDTH - 58)
    parts = [_percent_axis(scale, height)]
    for index, (name, interval) in enumerate(bars.items()):
        y = index * row + 5
        low, high = (scale(value) for value in interval.ci95)
        middle = y + 12
        parts.append(
            f'<g class="s{index}"><title>{escape(name)}: {100 * interval.mean:.1f} %</title>'
            f'<rect class="bar" x="{left}" y="{y}" width="{scale(interval.mean) - left:.1f}" height="24" rx="2"/>'
            f'<path class="whisker" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 5}v10M{high:.1f} {middle - 5}v10"/></g>'
            f'<text x="{left - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
            f'<text class="strong" x="{high + 7:.1f}" y="{middle + 4}">{100 * interval.mean:.1f}</text>'
        )
    return _svg("".join(parts), label, height, BARS_WIDTH)


def grouped_bars(
    groups: Mapping[str, Mapping[str, Interval]], marks: Mapping[str, float], names: Sequence[str], label: str
) -> str:
    """For each group (a family) one thin bar per name (an arm), and a tick at `marks[group]` (chance)."""
    thin, left = 9, 150
    row = thin * len(names) + 16
    height = row * len(groups) + BOTTOM
    scale = Scale(0.0, 1.0, left, BARS_WIDTH - 24)
    parts = [_percent_axis(scale, height)]
    for position, (group, values) in enumerate(groups.items()):
        top = position * row + 6
        middle = top + thin * len(names) / 2 + 4
        parts.append(f'<text x="{left - 8}" y="{middle:.1f}" text-anchor="end">{escape(group)}</text>')
        for index, name in enumerate(names):
            if (interval := values.get(name)) is None:
                continue
            parts.append(
                f'<rect class="bar s{index}" x="{left}" y="{top + index * thin}" height="{thin - 1}" rx="1" '
                f'width="{max(scale(interval.mean) - left, 1):.1f}"><title>{escape(group)}, {escape(name)}: '
                f"{100 * interval.mean:.1f} % of {interval.n}</title></rect>"
            )
        chance = f"M{scale(marks.get(group, 0.0)):.1f} {top - 2}v{thin * len(names) + 3}"
        parts.append(f'<path class="mark" d="{chance}"><title>chance</title></path>')
    return _svg("".join(parts), label, height, BARS_WIDTH)


def histogram(counts: Mapping[int, int], bound: int, label: str) -> str:
    """Vertical bars over 0, 1, ... `bound` at the least, the share above each."""
    keys = range(max([*counts, bound]) + 1)
    total = sum(counts.values()) or 1
    slot = (WIDTH - LEFT - RIGHT) / len(keys)
    scale = Scale(0.0, max([*counts.values(), 1]) / total, HEIGHT - BOTTOM, TOP + 14)
    parts: list[str] = []
    for key in keys:
        share = counts.get(key, 0) / total
        x, y, middle = LEFT + slot * key + slot * 0.15, scale(share), LEFT + slot * (key + 0.5)
        parts.append(
            f'<rect class="bar s{0 if key <= bound else 1}" x="{x:.1f}" y="{y:.1f}" width="{slot * 0.7:.1f}" '
            f'height="{HEIGHT - BOTTOM - y:.1f}" rx="2"/>'
            f'<text x="{middle:.1f}" y="{y - 5:.1f}" text-anchor="middle">{100 * share:.0f} %</text>'
            f'<text x="{middle:.1f}" y="{HEIGHT - 9}" text-anchor="middle">{key}</text>'
        )
    return _svg("".join(parts), label, HEIGHT)


def _svg(body: str, label: str, height: float, width: int = WIDTH) -> str:
    box = f"0 0 {width} {height:.0f}"
    return f'<svg class="chart" viewBox="{box}" role="img" aria-label="{escape(label)}">{body}</svg>'


def _points(item: Series) -> list[tuple[float, float]]:
    """The finite points, thinned evenly to MAX_POINTS."""
    points = [(x, y) for x, y in zip(item.x, item.y, strict=True) if y is not None and math.isfinite(y)]
    stride = -(-len(points) // MAX_POINTS) if points else 1
    return points[::stride]


def _range(values: Sequence[float], floor: float | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = 0.06 * (high - low) or max(abs(high) * 0.1, 0.1)
    return (low - margin if floor is None else min(floor, low)), high + margin


def _curve(index: int, name: str, points: Sequence[tuple[float, float]], x_scale: Scale, y_scale: Scale) -> str:
    soft = smooth([y for _, y in points], radius=max(1, len(points) // 30)) if len(points) > 8 else None
    raw = _path(points, x_scale, y_scale)
    title = f"<title>{escape(name)}</title>"
    if soft is None:
        dots = "".join(f'<circle cx="{x_scale(x):.1f}" cy="{y_scale(y):.1f}" r="2.5"/>' for x, y in points)
        return f'<g class="curve s{index}">{title}<path d="{raw}"/>{dots}</g>'
    line = _path([(x, y) for (x, _), y in zip(points, soft, strict=True)], x_scale, y_scale)
    return f'<g class="curve s{index}">{title}<path class="raw" d="{raw}"/><path d="{line}"/></g>'


def _path(points: Sequence[tuple[float, float]], x_scale: Scale, y_scale: Scale) -> str:
    return "M" + "L".join(f"{x_scale(x):.1f} {y_scale(y):.1f}" for x, y in points)


def _y_axis(scale: Scale) -> str:
    rows = [
        f'<path class="grid" d="M{LEFT} {scale(value):.1f}H{WIDTH - RIGHT}"/>'
        f'<text x="{LEFT - 7}" y="{scale(value) + 4:.1f}" text-anchor="end">{_short(value)}</text>'
        for value in ticks(scale.low, scale.high)
    ]
    return "".join(rows)


def _x_axis(scale: Scale) -> str:
    whole = [value for value in ticks(scale.low, scale.high, 5) if value == int(value)]
    return "".join(f'<text x="{scale(value):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{value:.0f}</text>' for value in whole)


def _percent_axis(scale: Scale, height: float) -> str:
    return "".join(
        f'<path class="grid" d="M{scale(value):.1f} 0V{height - BOTTOM:.0f}"/>'
        f'<text x="{scale(value):.1f}" y="{height - 9:.0f}" text-anchor="middle">{100 * value:.0f} %</text>'
        for value in (0.0, 0.25, 0.5, 0.75, 1.0)
    )


def _short(value: float) -> str:
    if abs(value) >= 10000:
        return f"{value / 1000:.0f}k"
    if 0.0 < abs(value) < 0.001:
        return f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return f"{value:.4g}" if abs(value) < 1 else f"{value:g}"
