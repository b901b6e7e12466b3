"""Words burned into a picture's recipe, at a place drawn by lot. Called by the families only."""

from __future__ import annotations

from typing import Any

from numpy.random import Generator

from medvista_ray.tasks.bench.drawing import clip_box
from medvista_ray.tasks.bench.pictures import glyph
from medvista_ray.types import Box


def burn(rng: Generator, recipe: dict[str, Any], word: str, height: int) -> Box:
    """Add a word whose capitals are `height` pixels tall anywhere inside the recipe's picture; its box."""
    side = recipe["crop"][2]
    tall, wide = glyph(word, height)[0].shape
    row, col = (int(rng.integers(0.04 * side, max(0.96 * side - extent, 0.04 * side + 1))) for extent in (tall, wide))
    recipe["text"] = [{"word": word, "at": [row, col], "height": height}]
    x0, y0, x1, y1 = (1000 * edge / side for edge in (col, row, col + wide, row + tall))
    return clip_box((x0, y0, x1, y1))
