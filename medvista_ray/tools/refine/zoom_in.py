"""`zoom_in`: crop a region of a picture and enlarge it.

Invariant: what comes back is measurable: grey values stay native (HU stays HU), the window is kept and the pixel
spacing is scaled by exactly the factor of the resampling.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

import numpy as np
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema

from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import Window, box_to_window, grow, window_to_box
from medvista_ray.tools.refine.resampling import MAX_LONG_SIDE, crop, resample, rescaled
from medvista_ray.tools.refine.slices import Preset, select, windowed
from medvista_ray.types import MedImage, ToolResult

MIN_SHORT_SIDE = 224
"""A crop's short side is enlarged to this at least, in pixels."""
MIN_CROP_SIDE = 8
"""A smaller region grows to this about its centre, in source pixels."""
MAX_ASPECT = 4
"""A longer strip is widened about its centre."""


class ZoomInArgs(ToolArgs):
    """Arguments of zoom_in."""

    image_index: Index = 0
    bbox: BoxArg
    scale: Annotated[float, Field(strict=True, ge=1.0, le=16.0)] | None = None
    """Enlargement; by default what the smallest side of the result asks for."""
    slice_index: SkipJsonSchema[Index | None] = None
    """Of a scan; by default the slice that is shown. Like `window`, left out of the signature, which is for all pictures."""
    window: SkipJsonSchema[Preset | None] = None
    """How a CT picture is shown."""


class ZoomIn(Tool):
    """Crop and enlarge a region."""

    name: ClassVar[str] = "zoom_in"
    family: ClassVar[Family] = "refine"
    description: ClassVar[str] = "crop and enlarge a region."
    Args = ZoomInArgs

    def run(self, args: ZoomInArgs, context: ToolContext) -> ToolResult:
        """The region as the episode's next picture."""
        image = windowed(select(context.image(args.image_index), args.image_index, args.slice_index), args.window)
        window = _crop_window(args.bbox, image.size)
        part = crop(image, window)
        picture = rescaled(part, resample(part.pixels, *_target_size(*part.size, args.scale)))
        box = window_to_box(window, image.size)
        data = {"image_index": args.image_index, "bbox": list(box), "scale": picture.size[1] / part.size[1]}
        return ToolResult(text=f"image {context.num_images} shows this region.", images=(picture,), data=data)

    def probe(self) -> None:
        """Enlarge one quarter of a small ramp."""
        ramp = MedImage(pixels=np.arange(256, dtype=np.int16).reshape(16, 16), modality="probe")
        result = self.run(ZoomInArgs(bbox=(0, 0, 500, 500)), ToolContext({0: ramp}, {}))
        if result.images[0].size != (MIN_SHORT_SIDE, MIN_SHORT_SIDE):
            raise RuntimeError(f"zoom_in gave a picture of {result.images[0].size}")


def _crop_window(box: tuple[int, int, int, int], size: tuple[int, int]) -> Window:
    """The pixels of `box`, grown to a minimum size and aspect ratio where the picture allows."""
    window = box_to_window(box, size)
    tall, wide = window.y1 - window.y0, window.x1 - window.x0
    least = max(MIN_CROP_SIDE, -(-max(tall, wide) // MAX_ASPECT))
    y0, y1 = grow(window.y0, window.y1, least, size[0])
    x0, x1 = grow(window.x0, window.x1, least, size[1])
    return Window(y0, x0, y1, x1)


def _target_size(height: int, width: int, scale: float | None) -> tuple[int, int]:
    """Size of the result: short side >= MIN_SHORT_SIDE, unless that makes the long side exceed MAX_LONG_SIDE."""
    wanted = max(scale or 1.0, MIN_SHORT_SIDE / min(height, width))
    factor = min(wanted, MAX_LONG_SIDE / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))
