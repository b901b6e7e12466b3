"""An expert's deliberate slips: wrong in the way they mean to be, answered, not imitated, followed by the right call."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest

from medvista_ray.protocol import ToolCall, parse, render_turn
from medvista_ray.rollout.scripted import Slip
from medvista_ray.rollout.slips import AGAIN, SlippingExpert, cut, misspell, swap
from medvista_ray.types import ErrorCode, Observation

ZOOM = ToolCall("zoom_in", {"image_index": 0, "bbox": [100, 200, 300, 400]})
SEARCH = ToolCall("search_text", {"query": "Other chronic cystitis"})
NOTHING = Observation("", ())


class Plain:
    """Calls once, then answers."""

    def __init__(self, call: ToolCall) -> None:
        self._turns = iter([render_turn("I look.", call), render_turn("I have it.", "yes")])

    async def next(self, observation: Observation) -> str:
        return next(self._turns)


def turns(call: ToolCall, share: float, seed: int = 0) -> list[str]:
    expert = SlippingExpert(Plain(call), np.random.default_rng(seed), share)
    played = [asyncio.run(expert.next(NOTHING))]
    while parse(played[-1]).answer is None:
        played.append(asyncio.run(expert.next(NOTHING)))
    assert expert.num_slips == len(played) - 2
    return played


@pytest.mark.parametrize("call", [ZOOM, SEARCH])
def test_a_slip_is_followed_by_the_right_call_and_only_the_slip_is_marked(call: ToolCall) -> None:
    slip, again, answer = turns(call, share=1.0)
    assert [isinstance(text, Slip) for text in (slip, again, answer)] == [True, False, False]
    assert parse(slip).call != call
    assert (parse(again).call, parse(again).think in AGAIN, parse(answer).answer) == (call, True, "yes")


def test_without_slips_the_expert_plays_as_it_is_and_with_some_in_that_share_of_episodes() -> None:
    assert turns(ZOOM, share=0.0) == [render_turn("I look.", ZOOM), render_turn("I have it.", "yes")]
    num_slips = sum(len(turns(ZOOM, 0.25, seed)) - 2 for seed in range(200))
    assert 30 <= num_slips <= 70


def test_each_slip_is_the_error_that_it_means_to_be() -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        box = parse(swap("x", ZOOM, rng)).call
        assert box is not None
        x0, y0, x1, y1 = box.arguments["bbox"]
        assert (x0 > x1) != (y0 > y1)
        assert parse(cut("x", ZOOM, rng)).error is ErrorCode.E1
        query = parse(misspell("x", SEARCH, rng)).call
        assert query is not None
        assert sorted(query.arguments["query"].replace(" ", "")) == sorted("Otherchroniccystitis")
