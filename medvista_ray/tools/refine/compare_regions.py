"""`compare_regions`: two to four regions side by side, of one picture or of several, with their mean values.

Invariant: each crop is shown as its own picture shows it (same window), at one height, so that the eye compares; the
figures are those of the native values. The name and the arguments are a reconstruction: no source lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from pydantic import Field, StringConstraints

from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import box_to_window
from medvista_ray.tools.parse.measure import Measurement, compare_means, measure_box
from medvista_ray.tools.refine.resampling import crop
from medvista_ray.types import Box, MedImage, ToolResult

HEIGHT = 224
"""Of each crop in the montage, in pixels."""
_MAX_WIDTH = 448
"""A wider crop is made lower instead."""
_STRIP, _GAP = 24, 4
"""Height of the strip with the label, and space between crops, in pixels."""
_WHOLE: Box = (0, 0, 1000, 1000)


class RegionItem(ToolArgs):
    """One region."""

    image_index: Index = 0
    bbox: BoxArg = _WHOLE
    label: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=20)] | None = None
    """A, B, C, D by default."""


class CompareRegionsArgs(ToolArgs):
    """Arguments of compare_regions."""

    items: Annotated[tuple[RegionItem, ...], Field(min_length=2, max_length=4, title="[{image_index, bbox, label?}, ...]")]


class CompareRegions(Tool):
    """Regions side by side."""

    name: ClassVar[str] = "compare_regions"
    family: ClassVar[Family] = "refine"
    description: ClassVar[str] = "show 2 to 4 regions side by side."
    Args = CompareRegionsArgs

    def run(self, args: CompareRegionsArgs, context: ToolContext) -> ToolResult:
        """The montage as the episode's next picture. Raises ToolArgumentError for regions in different units."""
        labels = [item.label or "ABCD"[number] for number, item in enumerate(args.items)]
        regions = [measure_box(context.image(item.image_index), item.bbox) for item in args.items]
        tiles = [_tile(context.image(item.image_index), item.bbox, label) for item, label in zip(args.items, labels, strict=True)]
        picture = MedImage(pixels=_montage(tiles), modality=context.image(args.items[0].image_index).modality)
        figures = [_figures(*pair) for pair in zip(args.items, labels, regions, strict=True)]
        return ToolResult(
            text=f"image {context.num_images} shows {_told(labels, regions)}.",
            images=(picture,),
            data={"regions": figures},
        )

    def probe(self) -> None:
        """Compare the halves of a step."""
        step = MedImage(pixels=np.repeat(np.arange(2, dtype=np.uint8) * 200, 128).reshape(16, 16), modality="probe")
        halves = (RegionItem(bbox=(0, 0, 1000, 500)), RegionItem(bbox=(0, 500, 1000, 1000)))
        result = self.run(CompareRegionsArgs(items=halves), ToolContext({0: step}, {}))
        if [region["mean"] for region in result.data["regions"]] != [0.0, 200.0]:
            raise RuntimeError(f"compare_regions gave {result.data}")


def _figures(item: RegionItem, label: str, region: Measurement) -> dict[str, object]:
    return {
        "label": label,
        "image_index": item.image_index,
        "bbox": list(item.bbox),
        "mean": region.mean,
        "std": region.std,
        "unit": region.unit,
        "area": region.area,
        "length_unit": region.length_unit,
    }


def _told(labels: Sequence[str], regions: Sequence[Measurement]) -> str:
    """Each mean, and how each region compares with the first where the units allow."""
    words = [f"{labels[0]} (mean {regions[0].mean:.3g} {regions[0].unit})"]
    for label, region in zip(labels[1:], regions[1:], strict=True):
        same_unit = region.unit == regions[0].unit
        relation = f", {compare_means(region, regions[0])}" if same_unit else ""
        words.append(f"{label} (mean {region.mean:.3g} {region.unit}{relation})")
    return ", ".join(words)


def _tile(image: MedImage, box: Box, label: str) -> NDArray[np.uint8]:
    """[HEIGHT + strip, W, 3]: the crop, centred below its label."""
    shown = crop(image, box_to_window(box, image.size)).display()
    factor = min(HEIGHT / shown.shape[0], _MAX_WIDTH / shown.shape[1])
    size = max(1, round(shown.shape[1] * factor)), max(1, round(shown.shape[0] * factor))
    picture = Image.fromarray(shown).resize(size, Image.Resampling.BILINEAR)
    font = ImageFont.load_default(16)
    canvas = Image.new("RGB", (max(size[0], round(font.getlength(label)) + 2 * _GAP), HEIGHT + _STRIP))
    canvas.paste(picture, ((canvas.width - size[0]) // 2, _STRIP + (HEIGHT - size[1]) // 2))
    ImageDraw.Draw(canvas).text((_GAP, 2), label, fill="white", font=font)
    return np.asarray(canvas)


def _montage(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    gap = np.full((tiles[0].shape[0], _GAP, 3), 128, np.uint8)
    return np.concatenate([part for tile in tiles for part in (gap, tile)][1:], axis=1)
