"""The scripted expert of MedVista-Bench: it knows the gold region and calls the real tools for everything else.

Invariant: sizes, means, comparisons and codes come out of the tools' replies; only what must be SEEN in a close-up (a
letter, a nucleus) is taken from the gold answer, since a script has no eyes. Boxes that aim at something are jittered;
one that is itself what the question asks about is copied. Wrong or failed trajectories are dropped by whoever collects
them. The core families' turns are here, those of the wide ones in their own files. Called by `trainers.cold_start`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.random import Generator

from medvista_ray.protocol import render_turn
from medvista_ray.protocol.grammar import ToolCall
from medvista_ray.tasks.bench.drawing import jitter, pick
from medvista_ray.tasks.bench.families import PLAYS, SETS
from medvista_ray.types import Box, Observation, Task

THOUGHTS = {
    "zoom_in": ("It is too small, I zoom in.", "I need a closer look."),
    "segment_medical": ("I outline the structure.", "First the outline."),
    "measure": ("I measure it.", "Now I measure."),
    "search_text": ("I look it up.", "I search for the term."),
    "enhance": ("I show that slice.", "First that slice."),
    "super_resolve": ("I sharpen it.", "A finer grid will help."),
    "compare_regions": ("I compare them side by side.", "Side by side."),
    "ground": ("I look for it.", "Where is it?"),
    "segment_text": ("I outline all of them.", "Where are they?"),
    "answer": ("Now I know.", "I have it."),
}
FIELDS = {"wide": "width", "width": "width", "high": "height", "height": "height", "mean": "mean"}
"""Word of a question -> field of `measure`'s reply."""


class BenchExpert:
    """Plays one task; `sigma` is the jitter of the boxes it aims, as a share of their sides, on every second one."""

    def __init__(self, task: Task, rng: Generator, sigma: float) -> None:
        self.task = task
        self.reply = ""
        """What the last call said."""
        self._rng = rng
        self._sigma = sigma
        self._turns = self._play()

    async def next(self, observation: Observation) -> str:
        """The next turn's text."""
        self.reply = observation.text
        return next(self._turns)

    def _play(self) -> Iterator[str]:
        family = self.task.family
        if family in SETS["wide"] and family not in SETS["core"]:
            return PLAYS.load(family)(self)
        play = getattr(self, f"_{family}", None)
        return play() if play else self._look()

    def _look(self) -> Iterator[str]:
        yield self.answer(self.task.answer)

    def _lesion_size(self) -> Iterator[str]:
        yield self.call("segment_medical", image_index=0, bbox=self.box(-1))
        yield self.call("measure", mask_index=0)
        yield self.answer(self.field("long axis"))

    def _box_measure(self) -> Iterator[str]:
        word = next(word for word in FIELDS if word in self.task.question)
        yield self.call("measure", bbox=self.task.regions[0])
        yield self.answer(self.field(FIELDS[word]))

    def _denser_region(self) -> Iterator[str]:
        first, second = self.task.regions[:2]
        yield self.call("measure", bbox=first, reference_bbox=second)
        yield self.answer("A" if "region is higher" in self.reply else "B")

    def _side_marker(self) -> Iterator[str]:
        yield self.call("zoom_in", image_index=0, bbox=self.box(-1))
        yield self.answer(self.task.answer)

    def _nucleus_present(self) -> Iterator[str]:
        yield self.call("zoom_in", image_index=0, bbox=self.box(0))
        yield self.answer(self.task.answer)

    def _concept_code(self) -> Iterator[str]:
        quoted = re.search(r'"(.+)"', self.task.question)
        yield self.call("search_text", query=quoted[1] if quoted else self.task.question)
        first = re.search(r"1\. (\S+)", self.reply)
        yield self.answer(first[1] if first else "not found")

    def box(self, index: int) -> Box:
        """Gold region `index` as a hand points to it."""
        box = self.task.regions[index]
        return jitter(self._rng, box, self._sigma) if self._rng.random() < 0.5 else box

    def field(self, name: str) -> str:
        """The number behind a name in `measure`'s reply."""
        found = re.search(rf"{name} (-?[\d.]+)", self.reply)
        return found[1] if found else "unknown"

    def number(self, name: str) -> float:
        """The same as a number; NaN if there is none, which is nearest to nothing and larger than nothing."""
        text = self.field(name)
        return float("nan") if text == "unknown" else float(text)

    def call(self, tool: str, **arguments: Any) -> str:
        """The turn that calls a tool."""
        return render_turn(str(pick(self._rng, THOUGHTS[tool])), ToolCall(tool, _plain(arguments)))

    def answer(self, text: str) -> str:
        """The turn that answers."""
        return render_turn(str(pick(self._rng, THOUGHTS["answer"])), text)


def _plain(arguments: dict[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in arguments.items()}


def make_expert(task: Task, seed: int, sigma: float) -> BenchExpert:
    """An expert whose jitter is a function of the seed and the task."""
    return BenchExpert(task, np.random.default_rng([seed, *task.id.encode()]), sigma)
