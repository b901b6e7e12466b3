"""What finds and what outlines things in a picture, and what both give back: the words of this family's backends.

Owns `Finding`, `Grounder`, `Segmenter` and `Prompt`. Invariant: a mask has the picture's shape; scores are 0..1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from medvista_ray.registry import Registry
from medvista_ray.tools.geometry import Window
from medvista_ray.types import Box, MedImage

GROUNDERS = Registry(
    "grounder",
    {
        "classical": "medvista_ray.tools.localize.classical:ClassicalGrounder",
        "grounding_dino": "medvista_ray.tools.localize.grounding_dino:GroundingDino",
    },
)
SEGMENTERS = Registry(
    "segmenter",
    {
        "classical": "medvista_ray.tools.localize.region_growing:RegionGrowing",
        "litemedsam": "medvista_ray.tools.localize.promptable:LiteMedSamSegmenter",
        "sam2": "medvista_ray.tools.localize.promptable:Sam2Segmenter",
    },
)


@dataclass(frozen=True)
class Outline:
    """The shape of a finding, without the empty rest of its picture: there may be hundreds."""

    window: Window
    inside: NDArray[np.bool_]
    """The window's pixels."""
    size: tuple[int, int]
    """Height and width of the picture."""

    def mask(self) -> NDArray[np.bool_]:
        """[H, W] of the picture."""
        whole = np.zeros(self.size, bool)
        whole[self.window.y0 : self.window.y1, self.window.x0 : self.window.x1] = self.inside
        return whole


@dataclass(frozen=True)
class Finding:
    """One thing that was found."""

    box: Box
    score: float
    """0..1: a network's confidence, or (classical) how far its values stand out from those around it."""
    phrase: str
    outline: Outline | None = None
    """Where the finder knows it."""


@dataclass(frozen=True)
class Prompt:
    """Where to outline something: a box, or points in and outside of it."""

    box: Box | None = None
    points: tuple[tuple[int, int], ...] = ()
    """x, y, each 0..1000."""
    labels: tuple[int, ...] = ()
    """1 in the thing, 0 outside of it, for each point."""


class Grounder(Protocol):
    """Finds what a phrase names; made as `Grounder(choice, options)`."""

    def find(self, image: MedImage, phrase: str, box_threshold: float, text_threshold: float) -> list[Finding]:
        """Best first, none below `box_threshold`. Raises ToolArgumentError if it cannot look for such a thing."""
        ...


@dataclass(frozen=True)
class Query:
    """One search: the arguments of Grounder.find."""

    image: MedImage
    phrase: str
    box_threshold: float
    text_threshold: float


@runtime_checkable
class BatchGrounder(Grounder, Protocol):
    """A grounder that answers several queries faster than one after the other."""

    max_batch: int
    """Queries at once."""

    def find_many(self, queries: Sequence[Query]) -> list[list[Finding]]:
        """`find` of each."""
        ...


class Segmenter(Protocol):
    """Outlines what a prompt points to; made as `Segmenter(choice, options)`."""

    def segment(self, image: MedImage, prompt: Prompt) -> tuple[NDArray[np.bool_], float]:
        """Mask [H, W], perhaps empty, and its score. Raises ToolArgumentError for a prompt that it cannot use."""
        ...
