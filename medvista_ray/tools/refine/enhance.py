"""`enhance`: show a picture, or a slice of a scan, in another way: window, contrast, noise, orientation.

Invariant: what only changes the view (window, rotate, flip) or smooths (denoise) keeps native values, unit and spacing;
what changes the grey scale (clahe, gamma, sharpen, invert) gives display values 0..255 in the unit "intensity", so that
nobody measures made-up Hounsfield units. The name and the arguments are a reconstruction: no source lists them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import PydanticCustomError

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.refine.resampling import bounded, plain, restored
from medvista_ray.tools.refine.slices import Preset, select, windowed
from medvista_ray.types import MedImage, Plane, ToolResult

Operation = Literal["window", "clahe", "gamma", "denoise", "sharpen", "invert", "rotate", "flip"]
_TAKES: Mapping[Operation, tuple[str, ...]] = {
    "window": ("low", "high"),
    "clahe": ("clip",),
    "gamma": ("gamma",),
    "denoise": ("radius",),
    "sharpen": ("amount",),
    "rotate": ("angle",),
    "flip": ("axis",),
}
"""Keys of `params` that an operation reads, besides `plane`."""
_NUM_TILES = 8
"""CLAHE's tiles along each side (Zuiderveld, Graphics Gems IV, 1994)."""
_SHARPEN_SIGMA = 1.5
"""Of the unsharp mask, in pixels."""

Real = Annotated[float, Field(allow_inf_nan=False)]


class EnhanceParams(ToolArgs):
    """Parameters of an operation; each has a default."""

    low: Real | None = None
    """Native value shown as black; with `high`."""
    high: Real | None = None
    """Native value shown as white."""
    clip: Annotated[float, Field(ge=0.001, le=1.0)] = 0.01
    """CLAHE's clip limit."""
    gamma: Annotated[float, Field(ge=0.1, le=10.0)] = 0.6
    """Exponent; below 1 brightens."""
    radius: Annotated[int, Field(strict=True, ge=1, le=4)] = 1
    """Of the median filter, in pixels."""
    amount: Annotated[float, Field(ge=0.1, le=5.0)] = 1.0
    """Of sharpening."""
    angle: Literal[90, 180, 270] = 90
    """Degrees clockwise."""
    axis: Literal["horizontal", "vertical"] = "horizontal"
    """Direction in which a flip mirrors."""
    plane: Plane = "axial"
    """Plane of a scan that slice_index counts in."""


class EnhanceArgs(ToolArgs):
    """Arguments of enhance."""

    image_index: Index = 0
    op: Operation = "window"
    params: EnhanceParams | None = None
    slice_index: Index | None = None
    """Slice of a scan; by default the one that is shown."""
    window: Preset | None = None
    """How a CT picture is shown, before `op`."""

    @property
    def settings(self) -> EnhanceParams:
        """`params`, or the defaults."""
        return self.params or EnhanceParams()

    @model_validator(mode="after")
    def _fits(self) -> Self:
        valid = (*_TAKES.get(self.op, ()), "plane")
        unknown = sorted(self.settings.model_fields_set - set(valid))
        if unknown:
            words = "params of {op} are {valid}; found {found}"
            raise PydanticCustomError("params", words, {"op": self.op, "valid": ", ".join(valid), "found": unknown[0]})
        low, high = self.settings.low, self.settings.high
        if (low is None) != (high is None) or (low is not None and high is not None and low >= high):
            raise PydanticCustomError("low_high", "params low and high go together, low < high")
        return self


class Enhance(Tool):
    """Another view of a picture."""

    name: ClassVar[str] = "enhance"
    family: ClassVar[Family] = "refine"
    description: ClassVar[str] = f"{', '.join(get_args(Operation))}; windows {', '.join(get_args(Preset))}."
    Args = EnhanceArgs

    def run(self, args: EnhanceArgs, context: ToolContext) -> ToolResult:
        """The view as the episode's next picture. Raises ToolArgumentError for a slice or a window that does not fit."""
        image = select(context.image(args.image_index), args.image_index, args.slice_index, args.settings.plane)
        image = bounded(windowed(plain(image, image.pixels), args.window))
        picture = _OPERATIONS[args.op](image, args.settings)
        data = {"image_index": args.image_index, "op": args.op, "slice_index": args.slice_index}
        text = f"image {context.num_images} shows {_told(args)}."
        return ToolResult(text=text, images=(picture,), data=data | {"window": picture.window and list(picture.window)})

    def probe(self) -> None:
        """Invert a ramp."""
        ramp = MedImage(pixels=np.arange(256, dtype=np.uint8).reshape(16, 16), modality="probe", window=(0.0, 255.0))
        shown = self.run(EnhanceArgs(op="invert"), ToolContext({0: ramp}, {})).images[0].pixels
        if shown[0, 0] != 255 or shown[15, 15] != 0:
            raise RuntimeError(f"enhance inverted 0 and 255 to {shown[0, 0]} and {shown[15, 15]}")


def _told(args: EnhanceArgs) -> str:
    what = f"image {args.image_index}"
    if args.slice_index is not None:
        what += f", slice {args.slice_index}"
    if args.settings.plane != "axial":
        what += f", {args.settings.plane}"
    done = args.op if args.window is None else f"{args.window} window" + ("" if args.op == "window" else f", {args.op}")
    return f"{what}, {done}"


def _window(image: MedImage, params: EnhanceParams) -> MedImage:
    """The asked range; a picture whose window nobody named keeps the one it has."""
    if params.low is None or params.high is None:
        return image
    if image.pixels.ndim == 3:
        raise ToolArgumentError("a colour picture has no window")
    return replace(image, window=(params.low, params.high))


def _clahe(image: MedImage, params: EnhanceParams) -> MedImage:
    from skimage.exposure import equalize_adapthist

    grey = _shown(image)
    if grey.max() == grey.min():
        return _display(image, grey)
    tiles = max(1, image.size[0] // _NUM_TILES), max(1, image.size[1] // _NUM_TILES)
    return _display(image, equalize_adapthist(grey, kernel_size=tiles, clip_limit=params.clip))


def _gamma(image: MedImage, params: EnhanceParams) -> MedImage:
    return _display(image, _shown(image) ** params.gamma)


def _sharpen(image: MedImage, params: EnhanceParams) -> MedImage:
    from scipy.ndimage import gaussian_filter

    shown = _shown(image)
    sigma = (_SHARPEN_SIGMA, _SHARPEN_SIGMA, 0.0)[: shown.ndim]
    return _display(image, shown + params.amount * (shown - gaussian_filter(shown, sigma)))


def _denoise(image: MedImage, params: EnhanceParams) -> MedImage:
    from scipy.ndimage import median_filter

    side = 2 * params.radius + 1
    smooth = median_filter(image.pixels, size=(side, side, 1)[: image.pixels.ndim])
    return replace(image, pixels=restored(smooth, image.pixels))


def _invert(image: MedImage, _: EnhanceParams) -> MedImage:
    return _display(image, 1.0 - _shown(image))


def _rotate(image: MedImage, params: EnhanceParams) -> MedImage:
    turned = np.ascontiguousarray(np.rot90(image.pixels, -params.angle // 90))
    swapped = params.angle != 180 and image.spacing_mm
    spacing = (swapped[1], swapped[0]) if swapped else image.spacing_mm
    return replace(image, pixels=turned, spacing_mm=spacing)


def _flip(image: MedImage, params: EnhanceParams) -> MedImage:
    pixels = image.pixels[:, ::-1] if params.axis == "horizontal" else image.pixels[::-1]
    return replace(image, pixels=np.ascontiguousarray(pixels))


def _shown(image: MedImage) -> NDArray[np.float64]:
    """What an eye sees, 0..1: [H, W] if grey, [H, W, 3] if in colour."""
    display = image.display() / 255.0
    return display if image.pixels.ndim == 3 else display[..., 0]


def _display(image: MedImage, shown: NDArray[Any]) -> MedImage:
    """A picture of display values."""
    pixels = np.rint(np.clip(shown, 0.0, 1.0) * 255.0).astype(np.uint8)
    return replace(image, pixels=pixels, unit="intensity", window=None if pixels.ndim == 3 else (0.0, 255.0))


_OPERATIONS: Mapping[Operation, Callable[[MedImage, EnhanceParams], MedImage]] = {
    "window": _window,
    "clahe": _clahe,
    "gamma": _gamma,
    "denoise": _denoise,
    "sharpen": _sharpen,
    "invert": _invert,
    "rotate": _rotate,
    "flip": _flip,
}
