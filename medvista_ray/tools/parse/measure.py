"""`measure`: size, area, mean intensity and place of a box or a mask.

Lengths are mm and areas cm2 (mm2 below 0.1 cm2) where the picture has a pixel spacing, px and px2 where not. The long
axis of a mask is its largest extent (RECIST's longest diameter), the short axis its width perpendicular to that. A box
is told without axes: they are its width and height over again, in an order that readers mistake.
`data` holds the exact values; the text rounds to integers from 10 up and to one decimal below.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import Extent, box_to_window, extent, mask_window, outline
from medvista_ray.tools.validation import require_one_of
from medvista_ray.types import Box, Mask, MedImage, ToolResult

_SMALL_AREA_MM2 = 10.0
"""Below this (0.1 cm2) an area is told in mm2."""
_SAME_AREA = 0.05
"""Areas within 5 % of each other are told as the same size."""


class MeasureArgs(ToolArgs):
    """Arguments of measure."""

    bbox: BoxArg | None = None
    mask_index: Index | None = None
    image_index: Index = 0
    """Picture of the boxes; a mask knows its own."""
    reference_bbox: BoxArg | None = None
    reference_mask_index: Index | None = None

    @model_validator(mode="after")
    def _one_region(self) -> Self:
        require_one_of(self, "bbox", "mask_index")
        if self.reference_bbox is not None or self.reference_mask_index is not None:
            require_one_of(self, "reference_bbox", "reference_mask_index")
        return self


@dataclass(frozen=True)
class Measurement:
    """Exact figures of one region. Lengths in `length_unit`, area in its square, intensities in `unit`."""

    shape: Literal["box", "mask"]
    length_unit: str
    unit: str
    long_axis: float
    short_axis: float
    width: float
    height: float
    area: float
    mean: float
    std: float
    num_pixels: int
    center: tuple[int, int]
    """x, y, each 0..1000."""


class Measure(Tool):
    """Size, area, mean and place of a region."""

    name: ClassVar[str] = "measure"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "size, area, mean value and center of a box or mask."
    Args = MeasureArgs

    def run(self, args: MeasureArgs, context: ToolContext) -> ToolResult:
        """Figures of the region, and how it compares with the reference region if one is given."""
        region = _measure(context, args.image_index, args.bbox, args.mask_index)
        data: dict[str, Any] = asdict(region)
        data["center"] = list(region.center)
        text = describe(region)
        if args.reference_bbox is not None or args.reference_mask_index is not None:
            reference = _measure(context, args.image_index, args.reference_bbox, args.reference_mask_index)
            mean, area = compare_means(region, reference), compare_areas(region, reference)
            text += f", reference mean {_number(reference.mean)} {reference.unit}: region is {mean}; region is {area}"
            data["reference"] = {**asdict(reference), "center": list(reference.center)}
            data["region_mean_is"], data["region_area_is"] = mean, area
        return ToolResult(text=text, data=data)

    def probe(self) -> None:
        """Measure a known square."""
        image = MedImage(pixels=np.ones((10, 10), np.float32), modality="probe", spacing_mm=(2.0, 2.0))
        result = self.run(MeasureArgs(bbox=(0, 0, 500, 500)), ToolContext({0: image}, {}))
        if result.data["area"] != 100.0:
            raise RuntimeError(f"measure gave {result.data['area']} mm2 for 100 mm2")


def describe(region: Measurement) -> str:
    """The figures in words."""
    unit = region.length_unit
    lengths = f"width {_number(region.width)} {unit}, height {_number(region.height)} {unit}"
    if region.shape == "mask":
        axes = f"long axis {_number(region.long_axis)} {unit}, short axis {_number(region.short_axis)} {unit}"
        lengths = f"{axes}, {lengths}"
    return f"{lengths}, area {_area(region)}, mean {_number(region.mean)} {region.unit}, center {list(region.center)}"


def compare_means(region: Measurement, reference: Measurement) -> str:
    """ "higher", "lower", or "equal" where the text shows the same number or the difference is within sampling noise.

    Noise: two standard errors of a difference of means (Welch), pixels taken as independent.
    """
    if region.unit != reference.unit:
        raise ToolArgumentError(f"the reference is in {reference.unit}, the region in {region.unit}")
    gap = region.mean - reference.mean
    noise = 2.0 * (region.std**2 / region.num_pixels + reference.std**2 / reference.num_pixels) ** 0.5
    if abs(gap) <= noise or _number(region.mean) == _number(reference.mean):
        return "equal"
    return "higher" if gap > 0 else "lower"


def compare_areas(region: Measurement, reference: Measurement) -> str:
    """ "larger", "smaller" or "the same size" (within 5 %)."""
    if region.length_unit != reference.length_unit:
        raise ToolArgumentError(f"the reference is in {reference.length_unit}, the region in {region.length_unit}")
    if abs(region.area - reference.area) <= _SAME_AREA * reference.area:
        return "the same size"
    return "larger" if region.area > reference.area else "smaller"


def _measure(context: ToolContext, image_index: int, box: Box | None, mask_index: int | None) -> Measurement:
    if mask_index is not None:
        mask = context.mask(mask_index)
        return measure_mask(context.image(mask.image_index), mask)
    assert box is not None  # the schema asks for exactly one of the two
    return measure_box(context.image(image_index), box)


def measure_box(image: MedImage, box: Box) -> Measurement:
    """Figures of a rectangle; lengths are the box's own, intensities those of the pixels it touches."""
    (step_y, step_x), length_unit = _spacing(image)
    window = box_to_window(box, image.size)
    x0, y0, x1, y1 = box
    width, height = (x1 - x0) / 1000 * image.size[1] * step_x, (y1 - y0) / 1000 * image.size[0] * step_y
    return _measurement(
        image,
        "box",
        values=image.pixels[window.y0 : window.y1, window.x0 : window.x1],
        length_unit=length_unit,
        axes=Extent(max(width, height), min(width, height)),
        size=(width, height),
        area=width * height,
        center=((x0 + x1) // 2, (y0 + y1) // 2),
    )


def measure_mask(image: MedImage, mask: Mask) -> Measurement:
    """Figures of a region of any shape. Raises ToolArgumentError if it is empty."""
    if not mask.pixels.any():
        raise ToolArgumentError("the mask is empty")
    (step_y, step_x), length_unit = _spacing(image)
    window = mask_window(mask.pixels)
    ys, xs = np.nonzero(mask.pixels)
    height, width = image.size
    return _measurement(
        image,
        "mask",
        values=image.pixels[mask.pixels],
        length_unit=length_unit,
        axes=extent(outline(mask.pixels) * np.array([step_y, step_x])),
        size=((window.x1 - window.x0) * step_x, (window.y1 - window.y0) * step_y),
        area=len(ys) * step_y * step_x,
        center=(round((xs.mean() + 0.5) * 1000 / width), round((ys.mean() + 0.5) * 1000 / height)),
    )


def _measurement(
    image: MedImage,
    shape: Literal["box", "mask"],
    *,
    values: NDArray[Any],
    length_unit: str,
    axes: Extent,
    size: tuple[float, float],
    area: float,
    center: tuple[int, int],
) -> Measurement:
    """Adds the intensities: of a colour picture, the mean over its channels; what is no number does not count.

    Raises ToolArgumentError if no pixel of the region has a value.
    """
    grey = values.astype(np.float64).mean(axis=-1) if image.pixels.ndim == 3 else values.astype(np.float64)
    if values.dtype.kind == "f":
        grey = grey[np.isfinite(grey)]
        if not grey.size:
            raise ToolArgumentError("no pixel of the region has a value")
    return Measurement(
        shape=shape,
        length_unit=length_unit,
        unit=image.unit,
        long_axis=axes.long_axis,
        short_axis=axes.short_axis,
        width=size[0],
        height=size[1],
        area=area,
        mean=float(grey.mean()),
        std=float(grey.std()),
        num_pixels=int(grey.size),
        center=center,
    )


def _spacing(image: MedImage) -> tuple[tuple[float, float], str]:
    return (image.spacing_mm, "mm") if image.spacing_mm else ((1.0, 1.0), "px")


def _area(region: Measurement) -> str:
    if region.length_unit == "px":
        return f"{_number(region.area)} px2"
    if region.area < _SMALL_AREA_MM2:
        return f"{_number(region.area)} mm2"
    return f"{_number(region.area / 100.0)} cm2"


def _number(value: float) -> str:
    """An integer from 10 up, one decimal below, never "-0"."""
    if abs(value) >= 9.95:
        return str(round(value))
    return f"{round(value, 1) + 0.0:.1f}"
