"""`read_text`: printed text that is burned into a picture (side markers, scales, measurements), with boxes.

Invariant: what is read comes from the displayed pixels alone; one picture (or region) is read once per content hash,
within a bound. Backend "pp_ocr" runs PP-OCRv6 small, or the pair of ONNX files in the folder of its weights
(for example the server models, on a GPU with onnxruntime-gpu).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar

import numpy as np
from pydantic import Field

from medvista_ray.registry import Registry
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import Window, box_to_window, window_to_box
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import MedImage, ToolResult

if TYPE_CHECKING:
    from medvista_ray.tools.parse.ocr import Ocr, TextLine

READERS = Registry("text_reader", {"pp_ocr": "medvista_ray.tools.parse.ocr:Ocr"})
MAX_KEPT = 512
"""Pictures whose text is remembered."""
MAX_TOLD = 20
"""Lines that the words tell; `data` has all."""


class ReadTextArgs(ToolArgs):
    """Arguments of read_text."""

    image_index: Index = 0
    region: BoxArg | None = None
    """Read only here, enlarged: for small letters."""
    min_confidence: Annotated[float, Field(strict=True, ge=0.0, le=1.0)] = 0.5


class ReadText(Tool):
    """Optical character recognition."""

    name: ClassVar[str] = "read_text"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "read the text in a picture."
    Args = ReadTextArgs

    ocr: Ocr
    cache: ResultCache[list[TextLine]]

    def setup(self) -> None:
        """Load the networks."""
        self.ocr = load_backend(READERS, self.name, self.options, "pp_ocr")
        self.cache = ResultCache(MAX_KEPT)

    def run(self, args: ReadTextArgs, context: ToolContext) -> ToolResult:
        """Each line with its box and confidence, top to bottom; no line is a result too."""
        image = context.image(args.image_index)
        window = box_to_window(args.region or (0, 0, 1000, 1000), image.size)
        lines = self.cache.get(f"{image.key}{list(window)}", lambda: self._read(image, window))
        items = [
            {"text": line.text, "bbox": list(_box(line, window, image.size)), "confidence": round(line.confidence, 3)}
            for line in lines
            if line.confidence >= args.min_confidence
        ]
        told = "; ".join(f'"{item["text"]}" at {item["bbox"]}' for item in items[:MAX_TOLD])
        more = f"; {len(items) - MAX_TOLD} more lines" if len(items) > MAX_TOLD else ""
        return ToolResult(text=(told or "no text found") + more + ".", data={"lines": items, "image_index": args.image_index})

    def probe(self) -> None:
        """Recognise a bar (no detector run): the letter does not matter, an answer does."""
        bar = np.zeros((48, 48, 3), np.uint8)
        bar[8:40, 22:26] = 255
        if not self.ocr.recognise([bar])[0][0]:
            raise RuntimeError("read_text reads nothing in a bar")

    def _read(self, image: MedImage, window: Window) -> list[TextLine]:
        return self.ocr.read(image.display()[window.y0 : window.y1, window.x0 : window.x1])


def _box(line: TextLine, region: Window, size: tuple[int, int]) -> tuple[int, int, int, int]:
    """0..1000 in the whole picture."""
    top, left = region.y0, region.x0
    w = line.window
    return window_to_box(Window(w.y0 + top, w.x0 + left, w.y1 + top, w.x1 + left), size)
