"""Mistakes on purpose: an expert that slips now and then, is told what was wrong, and then does it right.

A policy that has only seen faultless trajectories writes nonsense after its first error, call after call; in RL these long
wrong episodes outweigh all others. Invariant: a slip is marked, so that it is shown and never imitated; the turn after it
is the expert's own. Called by `trainers.cold_start`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from numpy.random import Generator

from medvista_ray.protocol import ToolCall, parse, render_turn
from medvista_ray.rollout.scripted import Expert, Slip
from medvista_ray.types import Observation

AGAIN = ("That was wrong, once more.", "Again, with care.")


class SlippingExpert:
    """Plays as `expert` does; its first call is made wrongly in a `share` of the episodes, and repeated rightly."""

    def __init__(self, expert: Expert, rng: Generator, share: float) -> None:
        self.num_slips = 0
        self._expert = expert
        self._rng = rng
        self._will_slip = bool(rng.random() < share)
        self._right: ToolCall | None = None

    async def next(self, observation: Observation) -> str:
        """The next turn's text; a `Slip` if it is wrong on purpose."""
        if self._right is not None:
            call, self._right = self._right, None
            return render_turn(str(self._rng.choice(AGAIN)), call)
        text = await self._expert.next(observation)
        turn = parse(text)
        if turn.call is None or not self._will_slip:
            return text
        self._will_slip, self._right = False, turn.call
        self.num_slips += 1
        slips = [slip for key, slip in SLIPS.items() if key in turn.call.arguments] or [cut]
        return Slip(slips[int(self._rng.integers(len(slips)))](turn.think, turn.call, self._rng))


def swap(think: str, call: ToolCall, rng: Generator) -> str:
    """A box whose right edge is left of its left one, or whose lower edge is above (E3)."""
    box = list(call.arguments["bbox"])
    axis = int(rng.integers(2))
    box[axis], box[axis + 2] = box[axis + 2], box[axis]
    return render_turn(think, ToolCall(call.name, {**call.arguments, "bbox": box}))


def misspell(think: str, call: ToolCall, rng: Generator) -> str:
    """A query with the letters of every word in disorder: nothing is found, or something else (E4, mostly)."""
    words = ["".join(rng.permutation(list(word))) for word in call.arguments["query"].split()]
    return render_turn(think, ToolCall(call.name, {**call.arguments, "query": " ".join(words)}))


def cut(think: str, call: ToolCall, rng: Generator) -> str:
    """JSON that lacks its end (E1)."""
    text, tag = render_turn(think, call), "</tool_call>"
    return text.removesuffix(tag)[: -int(rng.integers(1, 5))] + tag


SLIPS: Mapping[str, Callable[[str, ToolCall, Generator], str]] = {"bbox": swap, "query": misspell, "image_index": cut}
"""By the argument that a call must have for it."""
