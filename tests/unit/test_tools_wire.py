"""Masks arrive as they were sent."""

from __future__ import annotations

import numpy as np
import pytest

from medvista_ray.types import ErrorCode, Mask, ToolOutcome, ToolResult
from serve_apps.wire import pack_mask, pack_masks, unpack_mask, unpack_masks


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
