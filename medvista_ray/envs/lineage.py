"""Where a tool's pictures came from, as plain JSON values for logs and reports. Called by the environment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medvista_ray.protocol import ToolCall
from medvista_ray.tools.base import Tool
from medvista_ray.types import Mask, MedImage


def lineage(
    call: ToolCall, spec: type[Tool] | None, masks: Sequence[Mask], first_index: int, images: Sequence[MedImage]
) -> list[Mapping[str, Any]]:
    """One entry per picture that `call` returned: index, content hash, size, tool, parent picture, and the box of it
    that the call named."""
    parent = _parent(call, spec, masks)
    return [
        {
            "index": first_index + offset,
            "key": image.key,
            "height": image.size[0],
            "width": image.size[1],
            "tool": call.name,
            "parent": parent,
            "bbox": call.arguments.get("bbox"),
        }
        for offset, image in enumerate(images)
    ]


def _parent(call: ToolCall, spec: type[Tool] | None, masks: Sequence[Mask]) -> int | None:
    """The picture that the call named, by itself, by a mask of it, or by the tool's default."""
    mask_index = call.arguments.get("mask_index")
    if isinstance(mask_index, int) and 0 <= mask_index < len(masks):
        return masks[mask_index].image_index
    field = spec.Args.model_fields.get("image_index") if spec else None
    index = call.arguments.get("image_index", field.default if field else None)
    return index if isinstance(index, int) else None
