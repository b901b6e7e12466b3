"""`super_resolve`: a region on a grid two or four times as fine.

The default computes: Lanczos interpolation, then iterative back-projection (Irani and Peleg, CVGIP 1991), which makes the
result agree with the picture it came from once it is averaged down again; it sharpens, it invents no texture. The
backend "swin2sr" runs a user's network. Invariant: native values within the range of the region, spacing scaled by the
factor. The name and the arguments are a reconstruction: no source lists them.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.errors import ToolArgumentError
from medvista_ray.registry import Registry
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BackendChoice, BoxArg, Family, Index, Tool, ToolArgs, ToolContext, ToolOptions
from medvista_ray.tools.geometry import box_to_window, window_to_box
from medvista_ray.tools.refine.resampling import MAX_LONG_SIDE, crop, finite, rescaled, restored
from medvista_ray.types import MedImage, ToolResult

_NUM_PROJECTIONS = 4

UPSCALERS = Registry(
    "upscaler",
    {
        "back_projection": "medvista_ray.tools.refine.super_resolve:BackProjection",
        "swin2sr": "medvista_ray.tools.refine.swin2sr:Swin2Sr",
    },
)


class Upscaler(Protocol):
    """A backend: made as `Upscaler(choice, options)`."""

    def upscale(self, pixels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
        """[factor * H, factor * W, C] from [H, W, C]; C is 1 or 3, values 0..1. Raises ToolArgumentError."""
        ...


class SuperResolveArgs(ToolArgs):
    """Arguments of super_resolve."""

    image_index: Index = 0
    bbox: BoxArg | None = None
    """The whole picture by default."""
    factor: Literal[2, 4] = 2


class SuperResolve(Tool):
    """A finer grid."""

    name: ClassVar[str] = "super_resolve"
    family: ClassVar[Family] = "refine"
    description: ClassVar[str] = "sharpen a region on a finer grid."
    Args = SuperResolveArgs

    upscaler: Upscaler

    def setup(self) -> None:
        """Choose the backend."""
        self.upscaler = load_backend(UPSCALERS, self.name, self.options, "back_projection")

    def run(self, args: SuperResolveArgs, context: ToolContext) -> ToolResult:
        """The region as the episode's next picture. Raises ToolArgumentError if the result would be too large."""
        image = context.image(args.image_index)
        window = box_to_window(args.bbox or (0, 0, 1000, 1000), image.size)
        part = crop(image, window)
        if max(part.size) * args.factor > MAX_LONG_SIDE:
            limit = MAX_LONG_SIDE // args.factor
            words = f"the region is {part.size[1]} x {part.size[0]} pixels; factor {args.factor} takes up to {limit}"
            raise ToolArgumentError(f"{words}: name a smaller bbox")
        picture = rescaled(part, _upscaled(self.upscaler, part.pixels, args.factor))
        box = list(window_to_box(window, image.size))
        data = {"image_index": args.image_index, "bbox": box, "factor": args.factor}
        text = f"image {context.num_images} shows this region, {args.factor} times finer."
        return ToolResult(text=text, images=(picture,), data=data)

    def probe(self) -> None:
        """Refine a small ramp."""
        ramp = MedImage(pixels=np.arange(64, dtype=np.int16).reshape(8, 8), modality="probe")
        result = self.run(SuperResolveArgs(), ToolContext({0: ramp}, {}))
        if result.images[0].size != (16, 16):
            raise RuntimeError(f"super_resolve gave a picture of {result.images[0].size}")


def _upscaled(upscaler: Upscaler, pixels: NDArray[Any], factor: int) -> NDArray[Any]:
    """`pixels` in native values, through the backend's 0..1."""
    pixels = finite(pixels)
    low, high = float(pixels.min()), float(pixels.max())
    shown = np.atleast_3d((pixels.astype(np.float32) - low) / max(high - low, 1e-6))
    fine = upscaler.upscale(shown, factor) * (high - low) + low
    return restored(fine if pixels.ndim == 3 else fine[..., 0], pixels)


class BackProjection:
    """Lanczos, then repeated correction by what the result lacks when it is averaged down again."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        del choice, options

    def upscale(self, pixels: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
        """See Upscaler."""
        return np.stack([_project(channel, factor) for channel in np.moveaxis(pixels, -1, 0)], axis=-1)


def _project(channel: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    height, width = channel.shape
    fine = _lanczos(channel, height * factor, width * factor)
    for _ in range(_NUM_PROJECTIONS):
        coarse = fine.reshape(height, factor, width, factor).mean(axis=(1, 3))
        fine = np.clip(fine + _lanczos(channel - coarse, *fine.shape), 0.0, 1.0)
    return fine


def _lanczos(channel: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Unclipped: corrections have both signs."""
    grey = Image.fromarray(np.ascontiguousarray(channel, dtype=np.float32))
    return np.asarray(grey.resize((width, height), Image.Resampling.LANCZOS))
