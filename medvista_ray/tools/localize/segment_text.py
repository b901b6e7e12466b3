"""`segment_text`: masks of everything that a text names, or that it is absent.

A chain: the backend chosen for `ground` finds, and where that gives boxes only (a network), the backend chosen for
`segment_prompt` outlines. The target "text" finds burned-in text. Absence is a result, not an error: a policy must be able
to ask. The name and the arguments are a reconstruction: no source lists them.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.localize.finding import GROUNDERS, SEGMENTERS, Finding, Grounder, Prompt, Segmenter
from medvista_ray.tools.localize.ground import Phrase, disc
from medvista_ray.tools.localize.overlay import overlay
from medvista_ray.tools.localize.segment_prompt import figures
from medvista_ray.types import Mask, MedImage, ToolResult

_BOX_THRESHOLD, _TEXT_THRESHOLD = 0.35, 0.25


class SegmentTextArgs(ToolArgs):
    """Arguments of segment_text."""

    image_index: Index = 0
    target: Phrase = "text"
    max_masks: Annotated[int, Field(strict=True, ge=1, le=20)] = 5
    """The best ones."""
    overlay: bool = False
    """Show the outlines, too."""


class SegmentText(Tool):
    """Text to masks."""

    name: ClassVar[str] = "segment_text"
    family: ClassVar[Family] = "localize"
    description: ClassVar[str] = "outline all that a text names, or say that it is absent."
    Args = SegmentTextArgs

    segmenter: Segmenter
    grounder: Grounder

    def setup(self) -> None:
        """Load the backends of `ground` and `segment_prompt`."""
        self.grounder = load_backend(GROUNDERS, "ground", self.options, "classical")
        self.segmenter = load_backend(SEGMENTERS, "segment_prompt", self.options, "classical")

    def run(self, args: SegmentTextArgs, context: ToolContext) -> ToolResult:
        """The masks as the episode's next ones. Raises ToolArgumentError for a target that cannot be looked for."""
        image = context.image(args.image_index)
        found = self.grounder.find(image, args.target, _BOX_THRESHOLD, _TEXT_THRESHOLD)
        outlined = [(self._mask(image, args.image_index, finding), finding.score) for finding in found[: args.max_masks]]
        masks = [mask for mask, _ in outlined if mask is not None]
        regions = [figures(mask.pixels, score) for mask, score in outlined if mask is not None]
        data = {"image_index": args.image_index, "absent": not masks, "num_found": len(found), "regions": regions}
        if not masks:
            return ToolResult(text=f"{args.target!r} is absent.", data=data)
        told = "; ".join(f"mask {context.num_masks + number}: box {one['bbox']}" for number, one in enumerate(regions))
        shown = (overlay(image, [], [mask.pixels for mask in masks]),) if args.overlay else ()
        text = f"{len(found)} found. {told}."
        return ToolResult(
            text=f"{text} image {context.num_images} shows them." if shown else text,
            images=shown,
            masks=tuple(masks),
            data=data,
        )

    def probe(self) -> None:
        """Look for a bright disc; a network only has to answer."""
        self.run(SegmentTextArgs(target="bright structure"), ToolContext({0: disc()}, {}))

    def _mask(self, image: MedImage, index: int, finding: Finding) -> Mask | None:
        """Its outline; None if there is none."""
        outline = finding.outline
        pixels = outline.mask() if outline else self.segmenter.segment(image, Prompt(finding.box))[0]
        return Mask(index, pixels) if pixels.any() else None
