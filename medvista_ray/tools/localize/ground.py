"""`ground`: the boxes of what a phrase names.

The default computes and has a closed vocabulary (see `classical`); a phrase outside of it is refused with what can be
found. The backend "grounding_dino" runs a user's network. The name and the arguments are a reconstruction: no source lists
them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field, StringConstraints

from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.localize.finding import GROUNDERS, BatchGrounder, Finding, Grounder, Query
from medvista_ray.tools.localize.overlay import overlay
from medvista_ray.types import MedImage, ToolResult

MAX_TOLD = 10
"""Boxes in the text; `data` holds all."""

Phrase = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=100)]
Threshold = Annotated[float, Field(strict=True, ge=0.0, le=1.0)]


class GroundArgs(ToolArgs):
    """Arguments of ground."""

    image_index: Index = 0
    phrase: Phrase
    box_threshold: Threshold = 0.35
    """Least score of a box."""
    text_threshold: Threshold = 0.25
    """Least score of a word of the phrase (a network's)."""
    overlay: bool = False
    """Show the boxes, too."""


class Ground(Tool):
    """Phrase to boxes."""

    name: ClassVar[str] = "ground"
    family: ClassVar[Family] = "localize"
    description: ClassVar[str] = "boxes of what a phrase names."
    Args = GroundArgs

    grounder: Grounder

    def setup(self) -> None:
        """Load the backend."""
        self.grounder = load_backend(GROUNDERS, self.name, self.options, "classical")
        if isinstance(self.grounder, BatchGrounder):
            self.max_batch = self.grounder.max_batch

    def run(self, args: GroundArgs, context: ToolContext) -> ToolResult:
        """The boxes, best first. Raises ToolArgumentError for a phrase that the backend cannot look for."""
        image = context.image(args.image_index)
        found = self.grounder.find(image, args.phrase, args.box_threshold, args.text_threshold)
        return self._told(args, context, found)

    def run_many(self, calls: Sequence[tuple[GroundArgs, ToolContext]]) -> list[ToolResult]:
        """One pass of the network for calls on pictures of one size."""
        if not isinstance(self.grounder, BatchGrounder):
            return super().run_many(calls)
        queries = [
            Query(context.image(args.image_index), args.phrase, args.box_threshold, args.text_threshold)
            for args, context in calls
        ]
        found = self.grounder.find_many(queries)
        return [self._told(args, context, one) for (args, context), one in zip(calls, found, strict=True)]

    def _told(self, args: GroundArgs, context: ToolContext, found: list[Finding]) -> ToolResult:
        image = context.image(args.image_index)
        told = "; ".join(f"{list(finding.box)} score {finding.score:.2f}" for finding in found[:MAX_TOLD])
        more = f"; and {len(found) - MAX_TOLD} more" if len(found) > MAX_TOLD else ""
        text = f"{len(found)} found for {args.phrase!r}: {told}{more}." if found else f"no {args.phrase!r} found."
        shown = (overlay(image, [finding.box for finding in found]),) if args.overlay and found else ()
        return ToolResult(
            text=f"{text} image {context.num_images} shows them." if shown else text,
            images=shown,
            data={
                "image_index": args.image_index,
                "boxes": [list(finding.box) for finding in found],
                "scores": [finding.score for finding in found],
                "phrases": [finding.phrase for finding in found],
                "num_detections": len(found),
            },
        )

    def probe(self) -> None:
        """Look for a bright disc; a network only has to answer."""
        self.run(GroundArgs(phrase="bright structure"), ToolContext({0: disc()}, {}))


def disc() -> MedImage:
    """A bright disc of radius 16 in the middle of 64 x 64 pixels, for probes."""
    ys, xs = np.mgrid[:64, :64]
    return MedImage(pixels=((ys - 32) ** 2 + (xs - 32) ** 2 < 16**2).astype(np.float32), modality="probe")
