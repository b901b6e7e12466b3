"""Pictures of cases, good and bad, for eyes: one montage a tool, made by `tools_quality_checks`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from medvista_ray.types import MedImage

SIDE = 300
_NUM_EACH = 4


class Album:
    """Collects cases with a score; keeps the best and the worst."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._cases: list[tuple[float, str, Any]] = []

    def add(self, score: float, caption: str, image: MedImage, found: Any = None, true: Any = None) -> None:
        """A case; `found` is tinted green and `true` red ([H, W] bool)."""
        shown = image.display().astype(np.float32)
        for mask, tint in ((true, (255, 0, 0)), (found, (0, 255, 0))):
            if mask is not None:
                shown[mask] = shown[mask] * 0.65 + np.array(tint) * 0.35
        picture = Image.fromarray(shown.astype(np.uint8))
        picture.thumbnail((SIDE, SIDE))
        self._cases.append((score, caption, picture))

    def write(self) -> str:
        """The montage: the worst above, the best below; its path."""
        ordered = sorted(self._cases, key=lambda case: case[0])
        rows = [ordered[:_NUM_EACH], ordered[_NUM_EACH:][-_NUM_EACH:]]
        sheet = Image.new("RGB", (SIDE * _NUM_EACH, (SIDE + 34) * 2), "white")
        for row, cases in enumerate(rows):
            for column, (score, caption, picture) in enumerate(cases):
                at = column * SIDE, row * (SIDE + 34)
                sheet.paste(picture, (at[0], at[1] + 34))
                ImageDraw.Draw(sheet).text((at[0] + 3, at[1] + 3), f"{score:.2f} {caption[:44]}\n{caption[44:92]}", fill="black")
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.png"
        sheet.save(path)
        return str(path)
