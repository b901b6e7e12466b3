"""Words burned into a picture's recipe, at a place drawn by lot. Called by the families only."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.random import Generator

from medvista_ray.tasks.bench.drawing import clip_box
from medvista_ray.tasks.bench.pictures import glyph, render
from medvista_ray.types import Box

DARK = 110.0
"""Display values of a dark background stay below."""
NUM_TRIES = 30


def burn(rng: Generator, recipe: dict[str, Any], word: str, height: int) -> Box:
    """Add a word whose capitals are `height` pixels tall anywhere inside the recipe's picture; its box."""
    return _add(recipe, word, height, *_place(rng, recipe["crop"][2], word, height))


def burn_on_dark(rng: Generator, recipe: dict[str, Any], word: str, height: int) -> Box | None:
    """The same where all around is dark, as markers are set beside the patient; None if there is hardly such a place."""
    red, green, blue = np.moveaxis(render(recipe).display(), 2, 0)
    shown = np.maximum(np.maximum(red, green), blue)  # eighty times as fast as max over the last axis
    tall, wide = glyph(word, height)[0].shape
    for _ in range(NUM_TRIES):
        row, col = _place(rng, recipe["crop"][2], word, height)
        around = shown[max(row - height, 0) : row + tall + height, max(col - height, 0) : col + wide + height]
        if np.percentile(around, 98) < DARK:
            return _add(recipe, word, height, row, col)
    return None


def _place(rng: Generator, side: int, word: str, height: int) -> tuple[int, int]:
    tall, wide = glyph(word, height)[0].shape
    edge = side // 25
    row, col = (int(rng.integers(edge, max(side - edge - extent, edge + 1))) for extent in (tall, wide))
    return row, col


def _add(recipe: dict[str, Any], word: str, height: int, row: int, col: int) -> Box:
    tall, wide = glyph(word, height)[0].shape
    side = recipe["crop"][2]
    recipe["text"] = [{"word": word, "at": [row, col], "height": height}]
    x0, y0, x1, y1 = (1000 * edge / side for edge in (col, row, col + wide, row + tall))
    return clip_box((x0, y0, x1, y1))
