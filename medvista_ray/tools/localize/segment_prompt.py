"""`segment_prompt`: the mask of what a box, points or a phrase point to.

The default computes from grey values (see `region_growing`); backends: "litemedsam" (carried weights, boxes) and "sam2" (a
user's SAM 2 or MedSAM2). A phrase is grounded first, by the backend chosen for `ground`, and its best box is outlined.
The name and the arguments are a reconstruction: no source lists them.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import mask_window, window_to_box
from medvista_ray.tools.localize.finding import GROUNDERS, SEGMENTERS, Grounder, Prompt, Segmenter
from medvista_ray.tools.localize.ground import Phrase, disc
from medvista_ray.tools.localize.overlay import overlay
from medvista_ray.tools.validation import require_one_of
from medvista_ray.types import Mask, MedImage, ToolResult

_PHRASE_THRESHOLDS = 0.35, 0.25

Coordinate = Annotated[int, Field(strict=True, ge=0, le=1000)]
Points = Annotated[tuple[tuple[Coordinate, Coordinate], ...], Field(min_length=1, max_length=16, title="[[x, y], ...]")]


class SegmentPromptArgs(ToolArgs):
    """Arguments of segment_prompt."""

    image_index: Index = 0
    bbox: BoxArg | None = None
    points: Points | None = None
    """[x, y] each, in the thing or (label 0) outside of it."""
    labels: tuple[Literal[0, 1], ...] | None = None
    """One per point; all 1 by default."""
    phrase: Phrase | None = None
    overlay: bool = False
    """Show the outline, too."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        require_one_of(self, "bbox", "points", "phrase")
        labels, points = self.labels, self.points or ()
        if labels is not None and (len(labels) != len(points) or 1 not in labels):
            raise PydanticCustomError("labels", "labels: one per point, at least one of them 1")
        return self


class SegmentPrompt(Tool):
    """Prompt to mask."""

    name: ClassVar[str] = "segment_prompt"
    family: ClassVar[Family] = "localize"
    description: ClassVar[str] = "outline what a box, points or a phrase show."
    Args = SegmentPromptArgs

    segmenter: Segmenter
    grounder: Grounder

    def setup(self) -> None:
        """Load the backends, its own and that of `ground`."""
        self.segmenter = load_backend(SEGMENTERS, self.name, self.options, "classical")
        self.grounder = load_backend(GROUNDERS, "ground", self.options, "classical")

    def run(self, args: SegmentPromptArgs, context: ToolContext) -> ToolResult:
        """The mask as the episode's next one. Raises ToolArgumentError if there is nothing to outline."""
        image = context.image(args.image_index)
        pixels, score = self._outline(image, args)
        if not pixels.any():
            raise ToolArgumentError(f"nothing to outline there in image {args.image_index}")
        told = figures(pixels, score)
        shown = (overlay(image, [], [pixels]),) if args.overlay else ()
        text = f"mask {context.num_masks}: box {told['bbox']}, score {score:.2f}."
        return ToolResult(
            text=f"{text} image {context.num_images} shows it." if shown else text,
            images=shown,
            masks=(Mask(args.image_index, pixels),),
            data=told | {"image_index": args.image_index},
        )

    def probe(self) -> None:
        """Outline a bright disc from its box; a network only has to answer."""
        self.segmenter.segment(disc(), Prompt(box=(200, 200, 800, 800)))

    def _outline(self, image: MedImage, args: SegmentPromptArgs) -> tuple[NDArray[np.bool_], float]:
        if args.phrase is None:
            points = args.points or ()
            return self.segmenter.segment(image, Prompt(args.bbox, points, args.labels or (1,) * len(points)))
        found = self.grounder.find(image, args.phrase, *_PHRASE_THRESHOLDS)
        if not found:
            raise ToolArgumentError(f"no {args.phrase!r} found in image {args.image_index}")
        best = found[0]
        return (best.outline.mask(), best.score) if best.outline else self.segmenter.segment(image, Prompt(best.box))


def figures(pixels: NDArray[np.bool_], score: float) -> dict[str, Any]:
    """What `data` says of a mask that is not empty; centroid is x, y in 0..1000."""
    size = pixels.shape[0], pixels.shape[1]
    ys, xs = np.nonzero(pixels)
    centroid = [round((float(xs.mean()) + 0.5) * 1000 / size[1]), round((float(ys.mean()) + 0.5) * 1000 / size[0])]
    box = list(window_to_box(mask_window(pixels), size))
    return {"bbox": box, "score": score, "area_px": len(ys), "centroid": centroid}
