"""Masks arrive as they were sent."""

from __future__ import annotations

import numpy as np
import pytest

from medvista_ray.types import ErrorCode, Mask, MedImage, ToolOutcome, ToolResult
from serve_apps.wire import MAX_MESSAGE_BYTES, fits_message, pack_mask, pack_masks, unpack_mask, unpack_masks


@pytest.mark.parametrize("shape", [(1, 1), (7, 13), (512, 512)])
def test_a_mask_arrives_as_it_was_sent_in_an_eighth_of_the_bytes(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).random(shape) < 0.3
    packed = pack_mask(Mask(2, pixels))
    back = unpack_mask(packed)
    assert packed.bits.nbytes == -(-pixels.size // 8)
    assert (back.image_index, back.pixels.dtype) == (2, np.dtype(bool))
    assert np.array_equal(back.pixels, pixels)


def test_an_outcome_keeps_all_but_its_masks_while_it_travels() -> None:
    pixels = np.eye(5, dtype=bool)
    outcome = ToolOutcome(ToolResult(text="mask 0", masks=(Mask(0, pixels),), data={"a": 1}), latency_s=0.5)
    light, packed = pack_masks(outcome)
    assert light.result is not None
    assert light.result.masks == ()
    back = unpack_masks(light, packed)
    assert back.result is not None
    assert (back.result.text, back.result.data, back.latency_s) == ("mask 0", {"a": 1}, 0.5)
    assert np.array_equal(back.result.masks[0].pixels, pixels)
    error = ToolOutcome(None, ErrorCode.E4, "nothing")
    assert unpack_masks(*pack_masks(error)) is error


def test_a_message_carries_pictures_and_masks_up_to_its_bound() -> None:
    image = MedImage(np.zeros((1024, 1024), np.uint8), "CT")
    assert num_fitting(image) == MAX_MESSAGE_BYTES >> 20
    mask = Mask(0, np.ones((8192, 8192), bool))
    assert fits_message(pack_masks(ToolOutcome(None, ErrorCode.E4, "nothing")))
    outcomes = [ToolOutcome(ToolResult("", images=(image,) * 2, masks=(mask,) * number)) for number in (0, 1)]
    assert [fits_message(pack_masks(outcome)) for outcome in outcomes] == [True, False]


def num_fitting(image: MedImage) -> int:
    """How many of these one message carries."""
    return next(n for n in range(99) if not fits_message(pack_masks(ToolOutcome(ToolResult("", images=(image,) * n))))) - 1
