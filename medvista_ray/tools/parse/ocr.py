"""PP-OCR: where text is in a picture (DB detector) and what it says (CTC recogniser), as two ONNX networks.

Owns loading and arithmetic, no caching. Only upright lines are read, as scanners burn them in: a rotated line's
upright box is read as it stands. Detector: Liao et al., Real-time Scene Text Detection with Differentiable
Binarization, 2020; weights PP-OCRv6 (PaddleOCR, Apache-2.0). Called by `read_text`.

Shape suffixes: H, W of a picture; N lines of a batch; T time steps; C characters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.errors import AssetError
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.geometry import Window

_MIN_SIDE, _MAX_SIDE, _STRIDE = 736, 2048, 32
"""The detector sees a short side of at least 736 and a long side of at most 2048 pixels, in steps of 32."""
_PIXEL_THRESHOLD, _BOX_THRESHOLD, _UNCLIP = 0.3, 0.5, 1.6
"""Those of PP-OCR: probability of a text pixel, mean over a box, and how far the shrunken core grows back."""
_MIN_CORE = 3
_LINE_HEIGHT, _MAX_LINE_WIDTH, _MIN_LINE_WIDTH = 48, 2048, 320
_BATCH = 6
Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class TextLine:
    """One line of text."""

    text: str
    window: Window
    """Its pixels."""
    confidence: float
    """Mean probability of its characters, 0..1."""


class Ocr:
    """The two loaded networks. Thread-safe: sessions only read."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Load the one `*det*.onnx` and the one `*rec*.onnx` below `choice.weights`, else the package's.

        Raises AssetError.
        """
        from medvista_ray.assets import asset_dir

        folder, num_threads = choice.weights or asset_dir("rapidocr"), options.num_threads
        self._detector = _session(folder, "det", num_threads)
        self._recogniser = _session(folder, "rec", num_threads)
        listed = self._recogniser.get_modelmeta().custom_metadata_map.get("character")
        if not listed:
            raise AssetError(f"the recogniser in {folder} has no 'character' metadata: the list of what it can read")
        self._characters = ["", *listed.splitlines(), " "]  # 0 is CTC's blank

    def read(self, display: Picture) -> list[TextLine]:
        """Lines of a picture [H, W, 3] as displayed, from top to bottom."""
        windows = _reading_order(self.detect(display))
        read = self.recognise([display[w.y0 : w.y1, w.x0 : w.x1] for w in windows])
        lines = (TextLine(text, window, score) for window, (text, score) in zip(windows, read, strict=True))
        return [line for line in lines if line.text.strip()]

    def detect(self, display: Picture) -> list[Window]:
        """Where lines are."""
        height, width = display.shape[:2]
        factor = min(max(1.0, _MIN_SIDE / min(height, width)), _MAX_SIDE / max(height, width))
        rows, columns = (max(_STRIDE, round(side * factor / _STRIDE) * _STRIDE) for side in (height, width))
        # OpenCV's order of channels (BGR), in which the networks were trained.
        (heat_1HW,) = self._detector.run(None, {"x": _network_input(display, rows, columns)[None]})[0]
        cores = _cores(heat_1HW[0])
        grown = (_unclip(core, heat_1HW.shape[1:]) for core in cores)
        scales = height / rows, width / columns
        windows = (_scaled(window, scales, (height, width)) for window in grown)
        return [window for window in windows if min(window.y1 - window.y0, window.x1 - window.x0) > _MIN_CORE]

    def recognise(self, crops: Sequence[Picture]) -> list[tuple[str, float]]:
        """Text and confidence of each crop [h, w, 3]; similar widths share a batch."""
        widths = [math.ceil(_LINE_HEIGHT * crop.shape[1] / crop.shape[0]) for crop in crops]
        order = sorted(range(len(crops)), key=lambda index: widths[index])
        found: dict[int, tuple[str, float]] = {}
        for start in range(0, len(order), _BATCH):
            members = order[start : start + _BATCH]
            found.update(zip(members, self._batch([crops[i] for i in members], [widths[i] for i in members]), strict=True))
        return [found[index] for index in range(len(crops))]

    def _batch(self, crops: Sequence[Picture], widths: Sequence[int]) -> list[tuple[str, float]]:
        widest = min(max(_MIN_LINE_WIDTH, *widths), _MAX_LINE_WIDTH)
        lines = np.zeros((len(crops), 3, _LINE_HEIGHT, widest), np.float32)
        for line, crop, width in zip(lines, crops, widths, strict=True):
            wide = min(width, widest)
            line[:, :, :wide] = _network_input(crop, _LINE_HEIGHT, wide)
        probabilities_NTC = self._recogniser.run(None, {"x": lines})[0]
        return [self._decode(probabilities_TC) for probabilities_TC in probabilities_NTC]

    def _decode(self, probabilities_TC: NDArray[np.float32]) -> tuple[str, float]:
        """Greedy CTC: repeated characters and blanks fall away."""
        best, scores = probabilities_TC.argmax(axis=1), probabilities_TC.max(axis=1)
        kept = (best != 0) & np.concatenate([[True], best[1:] != best[:-1]])
        text = "".join(self._characters[int(index)] for index in best[kept])
        return text, float(scores[kept].mean()) if kept.any() else 0.0


def _reading_order(windows: Sequence[Window]) -> list[Window]:
    """Rows from the top, each from the left; a window belongs to the row whose first window holds its middle."""
    rows: list[list[Window]] = []
    for window in sorted(windows, key=lambda window: window.y0 + window.y1):
        if not rows or window.y0 + window.y1 > 2 * rows[-1][0].y1:
            rows.append([])
        rows[-1].append(window)
    return [window for row in rows for window in sorted(row, key=lambda window: window.x0)]


def _session(folder: Path, part: str, num_threads: int | None) -> Any:
    import onnxruntime

    paths = sorted(folder.rglob(f"*{part}*.onnx"))
    if len(paths) != 1:
        raise AssetError(f"{folder}: one file *{part}*.onnx needed, found {len(paths)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or 0
    options.enable_cpu_mem_arena = False  # pictures differ in size: an arena would keep the largest for ever
    try:
        return onnxruntime.InferenceSession(paths[0], options, providers=onnxruntime.get_available_providers())
    except Exception as error:  # onnxruntime's exceptions share no public base class
        raise AssetError(f"{paths[0]} does not load: {error}") from error


def _network_input(display: Picture, rows: int, columns: int) -> NDArray[np.float32]:
    """[3, rows, columns] in -1..1, blue first."""
    resized = Image.fromarray(np.ascontiguousarray(display)).resize((columns, rows), Image.Resampling.BILINEAR)
    return np.asarray(resized, np.float32)[:, :, ::-1].transpose(2, 0, 1) / 127.5 - 1.0


def _cores(heat_HW: NDArray[np.float32]) -> list[Window]:
    """Bounding windows of connected text pixels that are sure enough."""
    from scipy import ndimage

    labelled: Any = ndimage.label(heat_HW > _PIXEL_THRESHOLD, structure=np.ones((3, 3)))
    windows = [Window(rows.start, cols.start, rows.stop, cols.stop) for rows, cols in ndimage.find_objects(labelled[0])]
    return [w for w in windows if _is_text(w, heat_HW)]


def _is_text(window: Window, heat_HW: NDArray[np.float32]) -> bool:
    is_large = min(window.y1 - window.y0, window.x1 - window.x0) >= _MIN_CORE
    return is_large and float(heat_HW[window.y0 : window.y1, window.x0 : window.x1].mean()) >= _BOX_THRESHOLD


def _unclip(window: Window, size: tuple[int, int]) -> Window:
    """Grow by area * ratio / perimeter: the detector was taught to mark a shrunken core of each line."""
    height, width = window.y1 - window.y0, window.x1 - window.x0
    margin = round(height * width * _UNCLIP / (2 * (height + width)))
    left, top = max(0, window.x0 - margin), max(0, window.y0 - margin)
    return Window(top, left, min(size[0], window.y1 + margin), min(size[1], window.x1 + margin))


def _scaled(window: Window, scales: tuple[float, float], size: tuple[int, int]) -> Window:
    y0, y1 = (min(round(value * scales[0]), size[0]) for value in (window.y0, window.y1))
    x0, x1 = (min(round(value * scales[1]), size[1]) for value in (window.x0, window.x1))
    return Window(y0, x0, y1, x1)
