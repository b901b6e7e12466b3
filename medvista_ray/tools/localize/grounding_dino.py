"""A user's Grounding DINO (Liu et al., arXiv 2303.05499), or a medical fine-tune of it, behind `ground`.

Invariant: what the network was trained with is what it gets: lower-case phrase with a full stop, short side 800 pixels,
ImageNet normalisation. Loaded through transformers from a folder of the user's when the backend is "grounding_dino".
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.tools.backends import load_model, loading
from medvista_ray.tools.base import BackendChoice, ToolOptions
from medvista_ray.tools.localize.finding import Finding, Query
from medvista_ray.types import Box, MedImage

_SHORT, _LONG = 800, 1333
"""Sides of the network's input, in pixels."""
_MEAN = np.array([0.485, 0.456, 0.406], np.float32)
_STD = np.array([0.229, 0.224, 0.225], np.float32)
_MAX_FOUND = 200
_MAX_BATCH = 8


class GroundingDino:
    """The loaded network and its tokenizer. Thread-safe: weights are only read."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Raises AssetError if the weights or the tokenizer do not load."""
        from transformers import AutoTokenizer, GroundingDinoForObjectDetection

        del options
        self._network: Any = load_model(GroundingDinoForObjectDetection, choice)
        self._device = choice.device
        # A CPU computes two pictures no faster than one after the other; a GPU is hardly filled by one.
        self.max_batch = 1 if choice.device == "cpu" else _MAX_BATCH
        with loading(choice):
            self._tokenizer: Any = AutoTokenizer.from_pretrained(choice.weights, local_files_only=True)

    def find(self, image: MedImage, phrase: str, box_threshold: float, text_threshold: float) -> list[Finding]:
        """See Grounder. A finding's phrase is made of the words whose score exceeds `text_threshold`."""
        return self.find_many([Query(image, phrase, box_threshold, text_threshold)])[0]

    def find_many(self, queries: Sequence[Query]) -> list[list[Finding]]:
        """See BatchGrounder. Only inputs of one size share a pass, so that none is padded."""
        inputs = [_network_input(query.image.display()) for query in queries]
        order = sorted(range(len(queries)), key=lambda i: inputs[i].shape)
        found: dict[int, list[Finding]] = {}
        for _, group in groupby(order, key=lambda i: inputs[i].shape):
            members = list(group)
            answers = self._pass([queries[i] for i in members], np.concatenate([inputs[i] for i in members]))
            found.update(zip(members, answers, strict=True))
        return [found[i] for i in range(len(queries))]

    def _pass(self, queries: list[Query], pixels: NDArray[np.float32]) -> list[list[Finding]]:
        """`pixels` is [queries, 3, H, W]."""
        import torch

        phrases = [query.phrase.lower().strip(" .") + " ." for query in queries]
        tokens = self._tokenizer(phrases, return_tensors="pt", padding=True)
        with torch.inference_mode():
            output = self._network(pixel_values=torch.from_numpy(pixels).to(self._device), **tokens.to(self._device))
        scores = output.logits.float().sigmoid().cpu().numpy()  # [queries, boxes, tokens]
        boxes = output.pred_boxes.float().cpu().numpy()  # [queries, boxes, 4]: centre and sides, 0..1
        words = tokens["input_ids"].tolist()
        return [self._findings(query, *answer) for query, *answer in zip(queries, scores, boxes, words, strict=True)]

    def _findings(self, query: Query, scores: NDArray[np.float32], boxes: NDArray[np.float32], words: list[int]) -> list[Finding]:
        best = scores.max(axis=1)
        kept = [int(box) for box in np.argsort(-best)[:_MAX_FOUND] if best[box] >= query.box_threshold]
        return [
            Finding(_box(boxes[i]), float(best[i]), self._words(scores[i], words, query.text_threshold) or query.phrase)
            for i in kept
        ]

    def _words(self, scores: NDArray[np.float32], words: list[int], threshold: float) -> str:
        special = set(self._tokenizer.all_special_ids)
        named = [word for word, score in zip(words, scores, strict=False) if score > threshold and word not in special]
        return str(self._tokenizer.decode(named)).strip(" .")


def _network_input(display: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[1, 3, H, W]: short side 800 pixels, long side 1333 at most."""
    height, width = display.shape[:2]
    factor = min(_SHORT / min(height, width), _LONG / max(height, width))
    size = max(32, round(width * factor)), max(32, round(height * factor))
    picture = np.asarray(Image.fromarray(display).resize(size, Image.Resampling.BILINEAR), dtype=np.float32)
    return ((picture / 255.0 - _MEAN) / _STD).transpose(2, 0, 1)[None]


def _box(relative: NDArray[np.float32]) -> Box:
    """0..1000 corners, never empty."""
    x, y, width, height = (float(value) for value in relative)
    x0, y0 = (min(max(int(1000 * edge), 0), 999) for edge in (x - width / 2, y - height / 2))
    x1, y1 = (min(max(round(1000 * edge), 1), 1000) for edge in (x + width / 2, y + height / 2))
    return x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)
