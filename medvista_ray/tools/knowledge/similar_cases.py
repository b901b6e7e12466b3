"""`similar_cases`: reference pictures of the train split that look most like this one, and what their sources say.

Invariant: only TRAIN subjects are in reach (`case_bank` refuses others), never the picture's own subject, and a case
tells its kind and its source's description, never a question's answer. Likeness is the cosine of standardised
features: those of `features` by default, those of a user's own model with backend "clip".
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BoxArg, Family, Index, Tool, ToolArgs, ToolContext
from medvista_ray.tools.geometry import box_to_window
from medvista_ray.types import MedImage, ToolResult

if TYPE_CHECKING:
    from medvista_ray.tools.knowledge.case_bank import CaseBank
    from medvista_ray.tools.parse.features import Encoder


class SimilarCasesArgs(ToolArgs):
    """Arguments of similar_cases."""

    image_index: Index = 0
    bbox: BoxArg | None = None
    k: Annotated[int, Field(strict=True, ge=1, le=5)] = 3


class SimilarCases(Tool):
    """Nearest reference pictures."""

    name: ClassVar[str] = "similar_cases"
    family: ClassVar[Family] = "knowledge"
    description: ClassVar[str] = "reference pictures that look alike, with what they show."
    Args = SimilarCasesArgs

    encoder: Encoder
    bank: CaseBank

    def setup(self) -> None:
        """Load the encoder and open the bank; the first time in a cache folder, build it."""
        from medvista_ray.tools.knowledge.case_bank import open_bank
        from medvista_ray.tools.parse.features import ENCODERS

        self.encoder = load_backend(ENCODERS, self.name, self.options, "appearance")
        self.use(open_bank(self.encoder.name, self.encoder.fresh))

    def use(self, bank: CaseBank) -> None:
        """Answer from `bank`."""
        self.bank = bank
        self._mean, self._scale = bank.features_ND.mean(axis=0), bank.features_ND.std(axis=0) + 1e-6
        self._units_ND = _unit((bank.features_ND - self._mean) / self._scale)

    def run(self, args: SimilarCasesArgs, context: ToolContext) -> ToolResult:
        """The `k` likest cases, one a subject and kind, likest first."""
        from medvista_ray.tools.knowledge.case_bank import subject_of

        image = context.image(args.image_index)
        scores = self._units_ND @ _unit((self.encoder.of(region(image, args.bbox)) - self._mean) / self._scale)
        own, seen, found = subject_of(image.source), set[str](), list[dict[str, Any]]()
        for index in np.argsort(-scores):
            case = self.bank.cases[int(index)]
            if case.subject != own and case.caption not in seen and len(found) < args.k:
                seen.add(case.caption)
                score = round(float(scores[index]), 3)
                found.append({"case_id": case.id, "modality": case.modality, "caption": case.caption, "score": score})
        lines = (f"{rank}. {item['caption']} ({item['score']:.2f})" for rank, item in enumerate(found, start=1))
        return ToolResult(text="; ".join(lines) + ".", data={"cases": found, "image_index": args.image_index})

    def probe(self) -> None:
        """A case of the bank is likest to itself."""
        if int(np.argmax(self._units_ND @ self._units_ND[0])) != 0:
            raise RuntimeError("similar_cases does not find the first case again")


def region(image: MedImage, box: tuple[int, int, int, int] | None) -> MedImage:
    """The part of a picture in `box`, with the look of the whole; all of it without one."""
    if box is None:
        return image
    window = box_to_window(box, image.size)
    cut = np.ascontiguousarray(image.display()[window.y0 : window.y1, window.x0 : window.x1])
    return MedImage(pixels=cut, modality=image.modality, spacing_mm=image.spacing_mm, source=image.source)


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows (or one vector) of length 1."""
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)
