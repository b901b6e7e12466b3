"""Find lines of burned-in text by the look of their strokes. Pure computation, no model; called by `structures`.

A character is a small component of a top-hat (what is brighter, or darker, than a stroke's surroundings) that fills its
box as letters do; touching letters are taken as one wide component. A line is a row of characters of about one height
with gaps smaller than that height; a single character must stand out strongly. Honest limits: text on a background as
bright as itself, letters larger than 64 pixels, and tissue or scale marks that look like letters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STROKE_PX = 11
"""Side of the top-hat: strokes are thinner."""
_MIN_CONTRAST = 70.0
"""Of a stroke over its surroundings, in display values."""
_MIN_HEIGHT, _MAX_HEIGHT = 6, 64
"""Of a character, in pixels."""
_MAX_WIDTHS = 20.0
"""A word of touching letters is at most this many heights wide."""
_FILL = (0.15, 0.75)
"""Share of its box that a character fills."""
_SINGLE_CONTRAST = 120.0
"""Least contrast of a character that stands alone, and its least height."""
_SINGLE_HEIGHT = 12
_MAX_SIDE = 1024
"""Larger pictures are looked at in this size, in pixels."""
_GAP = 0.9
"""Between neighbours of a line, in heights."""
_LIKE = 0.6
"""Least ratio of the heights of neighbours that stand on one line."""
_MAX_CHARACTERS = 2000


@dataclass
class _Line:
    y0: int
    x0: int
    y1: int
    x1: int
    num_characters: float
    contrast: float


def text_lines(display: NDArray[np.uint8]) -> NDArray[np.int32]:
    """[H, W] int32 from what an eye sees [H, W, 3]: the strokes of each line carry its number."""
    from PIL import Image
    from scipy.ndimage import black_tophat, white_tophat

    height, width = display.shape[:2]
    factor = min(1.0, _MAX_SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    grey = np.asarray(Image.fromarray(display.max(axis=2)).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    out = np.zeros(grey.shape, np.int32)
    for tophat in (white_tophat, black_tophat):
        strokes: NDArray[np.float32] = np.asarray(tophat(grey, size=_STROKE_PX))
        for line in _lines(strokes):
            part = slice(line.y0, line.y1), slice(line.x0, line.x1)
            out[part][strokes[part] > _MIN_CONTRAST] = int(out.max()) + 1
    return np.asarray(Image.fromarray(out).resize((width, height), Image.Resampling.NEAREST))


def _lines(strokes: NDArray[np.float32]) -> list[_Line]:
    """Characters joined from left to right; what is too little for a line is dropped."""
    lines: list[_Line] = []
    for character in _characters(strokes):
        mate = next((line for line in lines if _belong(line, character)), None)
        if mate is None:
            lines.append(character)
            continue
        mate.y0, mate.y1 = min(mate.y0, character.y0), max(mate.y1, character.y1)
        mate.x1 = max(mate.x1, character.x1)
        mate.num_characters += character.num_characters
    return [line for line in lines if line.num_characters >= 2 or _stands_alone(line)]


def _characters(strokes: NDArray[np.float32]) -> list[_Line]:
    """Components of the size and the shape of a character or a short word, from left to right."""
    from scipy.ndimage import find_objects, label

    result: Any = label(strokes > _MIN_CONTRAST, structure=np.ones((3, 3), np.uint8))
    labels: NDArray[np.int32] = result[0]
    parts: list[tuple[slice, slice]] = find_objects(labels)
    found = (_character(strokes[part], labels[part] == number, part) for number, part in enumerate(parts, start=1))
    return sorted((one for one in found if one), key=lambda one: one.x0)[:_MAX_CHARACTERS]


def _character(strokes: NDArray[np.float32], inside: NDArray[np.bool_], part: tuple[slice, slice]) -> _Line | None:
    height, width = inside.shape
    fits = _MIN_HEIGHT <= height <= _MAX_HEIGHT and width <= _MAX_WIDTHS * height
    if not fits or not _FILL[0] <= inside.mean() <= _FILL[1]:
        return None
    rows, columns = part
    return _Line(rows.start, columns.start, rows.stop, columns.stop, max(1.0, width / height), float(strokes[inside].mean()))


def _stands_alone(line: _Line) -> bool:
    return line.contrast >= _SINGLE_CONTRAST and line.y1 - line.y0 >= _SINGLE_HEIGHT


def _belong(line: _Line, character: _Line) -> bool:
    """On one line, of one size, and near."""
    tall, small = sorted((line.y1 - line.y0, character.y1 - character.y0), reverse=True)
    overlap = min(line.y1, character.y1) - max(line.y0, character.y0)
    return small >= _LIKE * tall and overlap >= _LIKE * small and character.x0 - line.x1 <= _GAP * tall
