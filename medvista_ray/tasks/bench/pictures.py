"""Pictures by recipe: which subject, slice, crop, flip, window and burned-in text make one 2-D picture.

Invariant: a recipe is plain JSON and renders to the same pixels everywhere; the window, crop and flips are the only
variations, and none crosses subjects. Called by the bench (`open`) and by the families while they make questions.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from medvista_ray.assets.volumes import Plate, Volume, open_plate, open_volume
from medvista_ray.types import Box, MedImage, VolumeImage

Recipe = Mapping[str, Any]
Window = tuple[float, float]

CT_WINDOWS: tuple[Window, ...] = ((-160.0, 240.0), (-1000.0, 200.0), (-450.0, 1050.0), (-100.0, 300.0))
"""Abdomen, lung, bone and mediastinum: black and white point in HU."""

MIN_CONTRAST = 60
"""Between the darkest and the brightest display value of a picture that shows something."""


@lru_cache(maxsize=32)
def volume(name: str) -> Volume:
    """The (memory-mapped) volume of that name, opened once per process."""
    return open_volume(name)


@lru_cache(maxsize=64)
def plate(name: str) -> Plate:
    """The single picture of that name, opened once per process."""
    return open_plate(name)


def render_all(recipe: Recipe) -> list[MedImage]:
    """The pictures of a task: those of the recipes under "images", or the one of the recipe itself."""
    return [render(one) for one in recipes_of(recipe)]


def recipes_of(recipe: Recipe) -> list[Recipe]:
    """One recipe a picture."""
    return list(recipe["images"]) if "images" in recipe else [recipe]


def render(recipe: Recipe) -> MedImage:
    """The picture of a recipe: {"plate", "slice", "crop": [row, col, height, width], "flip": [ud, lr], "turn": quarters
    clockwise, "window", "view", "text": [{"word", "at": [row, col], "height"}]}; with "slices": [first, one past the last]
    a scan, never flipped."""
    if "slices" in recipe:
        return _scan(recipe)
    values, spacing, unit, modality = _source(recipe)
    pixels = np.rot90(orient(values, recipe), -int(recipe.get("turn", 0)))
    if recipe.get("view") == "hematoxylin":
        pixels = hematoxylin(pixels)
    window = recipe.get("window")
    image = MedImage(
        pixels=np.ascontiguousarray(pixels),
        modality=modality,
        spacing_mm=spacing,
        unit=unit if pixels.ndim == 2 else "intensity",
        window=(float(window[0]), float(window[1])) if window else None,
        source=str(recipe["plate"]),
    )
    return _with_text(image, recipe.get("text", ()))


def shows_something(recipe: Recipe) -> bool:
    """Whether there is more to see than air."""
    return int(np.ptp(render(recipe).display()[::4, ::4])) >= MIN_CONTRAST


def _scan(recipe: Recipe) -> VolumeImage:
    scan = volume(str(recipe["plate"]))
    first, stop = recipe["slices"]
    row, col, height, width = recipe["crop"]
    part = np.ascontiguousarray(scan.values[first:stop, row : row + height, col : col + width])
    low, high = recipe["window"]
    window = float(low), float(high)
    source = str(recipe["plate"])
    return VolumeImage.of(part, scan.modality, scan.spacing_mm, unit=scan.unit, window=window, source=source)


def _source(recipe: Recipe) -> tuple[NDArray[Any], tuple[float, float] | None, str, str]:
    name = str(recipe["plate"])
    if "slice" in recipe:
        scan = volume(name)
        return scan.values[int(recipe["slice"])], (scan.spacing_mm[1], scan.spacing_mm[2]), scan.unit, scan.modality
    single = plate(name)
    return single.pixels, single.spacing_mm, single.unit, single.modality


def orient(values: NDArray[Any], recipe: Recipe) -> NDArray[Any]:
    """Crop and flip any [H, W, ...] array as the recipe's picture is (masks too)."""
    row, col, height, width = recipe["crop"]
    cut = np.asarray(values[row : row + height, col : col + width])
    flip_rows, flip_cols = recipe.get("flip", (False, False))
    cut = cut[::-1] if flip_rows else cut
    return cut[:, ::-1] if flip_cols else cut


def hematoxylin(colour: NDArray[Any]) -> NDArray[np.float32]:
    """Density of the nuclear stain, [H, W], 0..255: bright nuclei on black (colour deconvolution, Ruifrok 2001)."""
    from skimage.color import rgb2hed

    stain = rgb2hed(colour)[:, :, 0]
    return np.clip(stain / 0.2, 0.0, 1.0).astype(np.float32) * 255.0


def box_of(mask: NDArray[np.bool_]) -> Box:
    """Tight box of a mask, 0..1000 in its picture."""
    rows, cols = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    height, width = mask.shape
    return (
        round(1000 * int(cols[0]) / width),
        round(1000 * int(rows[0]) / height),
        round(1000 * (int(cols[-1]) + 1) / width),
        round(1000 * (int(rows[-1]) + 1) / height),
    )


def _with_text(image: MedImage, words: Any) -> MedImage:
    """Burn words in, as a scanner or a technologist does: white strokes at the top of the window, black outline."""
    if not words:
        return image
    low, high = image.window or (float(image.pixels.min()), float(image.pixels.max()))
    pixels = image.pixels.copy()
    for word in words:
        strokes, outline = glyph(str(word["word"]), int(word["height"]))
        row, col = word["at"]
        area = pixels[row : row + strokes.shape[0], col : col + strokes.shape[1]]
        area[outline] = low if pixels.ndim == 2 else 0
        area[strokes] = high if pixels.ndim == 2 else 255
    return MedImage(pixels, image.modality, image.spacing_mm, image.unit, image.window, image.source)


@lru_cache(maxsize=256)
def glyph(word: str, height: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Strokes and outline of a word whose capitals are `height` pixels tall, both [h, w]."""
    font = ImageFont.load_default(size=height * 1.4)
    left, top, right, bottom = font.getbbox(word)
    margin = max(1, height // 6)
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    strokes = Image.new("L", size)
    ImageDraw.Draw(strokes).text((margin - left, margin - top), word, font=font, fill=255)
    outline = Image.new("L", size)
    ImageDraw.Draw(outline).text((margin - left, margin - top), word, font=font, fill=255, stroke_width=margin, stroke_fill=255)
    return np.asarray(strokes) > 127, np.asarray(outline) > 127
