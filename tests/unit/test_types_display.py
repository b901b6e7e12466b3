"""What is seen of a picture, against the plain formula: the quicker ways give the same to the last bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from medvista_ray.tasks.bench.comparing import grey
from medvista_ray.types import MedImage


def plain_display(pixels: NDArray[Any], window: tuple[float, float] | None) -> NDArray[np.uint8]:
    """Windowed, clipped, rounded, three times the same; what is no number is 0."""
    values = np.nan_to_num(pixels.astype(np.float32), posinf=0.0, neginf=0.0)
    low, high = window or (float(values.min()), float(values.max()))
    shown = np.clip((values - low) / max(high - low, 1e-6), 0.0, 1.0) * 255.0
    return np.repeat(shown.round().astype(np.uint8)[:, :, None], 3, axis=2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int16, np.uint8, np.bool_])
@pytest.mark.parametrize("window", [None, (-100.0, 200.0)])
@pytest.mark.parametrize("is_odd", [False, True])
def test_a_grey_picture_is_shown_by_the_formula(dtype: type, window: tuple[float, float] | None, is_odd: bool) -> None:
    pixels = np.random.default_rng(0).uniform(-300.0, 300.0, (60, 41)).astype(dtype)
    if is_odd and np.dtype(dtype).kind == "f":
        pixels[3, 4], pixels[5, 6], pixels[7, 8] = np.nan, np.inf, -np.inf
    shown = MedImage(pixels, "CT", window=window).display()
    assert shown.dtype == np.uint8
    np.testing.assert_array_equal(shown, plain_display(pixels, window))


def test_the_grey_of_a_colour_picture_is_the_mean_of_its_channels() -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (60, 41, 3), np.uint8)
    np.testing.assert_array_equal(grey(MedImage(pixels, "histology")), pixels.astype(np.float32).mean(axis=2))
