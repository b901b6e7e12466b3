"""`classify`: what kind of picture is this, among candidates.

Invariant: decided on the displayed pixels alone, never on a header, a file name or the question. By default a kernel
model, fitted when the tool is first set up on pictures of TRAIN subjects only, knows five kinds (and says so when asked
for another); backend "clip" is a user's own model (BiomedCLIP-style), which ranks any words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, StringConstraints

from medvista_ray.errors import ToolArgumentError
from medvista_ray.registry import Registry
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BackendChoice, BoxArg, Family, Index, Tool, ToolArgs, ToolContext, ToolOptions
from medvista_ray.tools.knowledge.similar_cases import region
from medvista_ray.types import MedImage, ToolResult

if TYPE_CHECKING:
    from medvista_ray.tools.knowledge.case_bank import CaseBank

RANKERS = Registry(
    "ranker",
    {
        "kernel": "medvista_ray.tools.parse.classify:KernelModel",
        "clip": "medvista_ray.tools.parse.vision_models:ClipModel",
    },
)
PRESETS: dict[str, tuple[str, ...]] = {
    "modality": ("CT", "MRI", "X-ray", "ultrasound", "microscopy"),
    "plane": ("axial", "coronal", "sagittal"),
    "organ": ("brain", "chest", "abdomen", "pelvis", "limb", "eye"),
    "stain": ("hematoxylin and eosin", "immunohistochemistry", "fluorescence"),
}
ALIASES = {
    "computed tomography": "CT",
    "ct scan": "CT",
    "mr": "MRI",
    "magnetic resonance imaging": "MRI",
    "radiograph": "X-ray",
    "xray": "X-ray",
    "x ray": "X-ray",
    "us": "ultrasound",
    "sonography": "ultrasound",
    "histology": "microscopy",
    "histopathology": "microscopy",
    "pathology": "microscopy",
}
_RIDGE = 0.03
_SHARPNESS = 6.0
"""Slope from a score to a softmax share."""
_MARGIN = 3.0
_MARKS = (1e-4, 0.4)
"""Share of coloured pixels on the screen of an ultrasound machine."""
_STAIN_SIDE = 768
Candidate = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=80)]


class ClassifyArgs(ToolArgs):
    """Arguments of classify."""

    image_index: Index = 0
    bbox: BoxArg | None = None
    candidates: Annotated[list[Candidate], Field(min_length=2, max_length=20)] | None = None
    """Words to rank; by default those of the preset."""
    preset: Literal["modality", "plane", "organ", "stain"] = "modality"


class Ranker(Protocol):
    """What ranks words for a picture."""

    def rank(self, image: MedImage, labels: Sequence[str]) -> NDArray[np.float32]:
        """[num labels] shares that sum to 1. Raises ToolArgumentError for a word that it does not know."""
        ...


class Classify(Tool):
    """Ranked words for a picture."""

    name: ClassVar[str] = "classify"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "which kind of picture it is."
    Args = ClassifyArgs

    ranker: Ranker

    def setup(self) -> None:
        """Load what ranks; the first time in a cache folder, the default looks at its reference pictures."""
        self.ranker = load_backend(RANKERS, self.name, self.options, "kernel")

    def run(self, args: ClassifyArgs, context: ToolContext) -> ToolResult:
        """Labels with their shares, largest first."""
        image = region(context.image(args.image_index), args.bbox)
        labels = list(dict.fromkeys(args.candidates or PRESETS[args.preset]))
        shares = self.ranker.rank(image, labels)
        ranked = [{"label": labels[i], "prob": round(float(shares[i]), 3)} for i in np.argsort(-shares)]
        text = ", ".join(f"{item['label']} {item['prob']:.2f}" for item in ranked[:5])
        return ToolResult(text=f"{text}.", data={"ranked": ranked, "image_index": args.image_index})

    def probe(self) -> None:
        """The shares of a blank picture are finite."""
        blank = MedImage(pixels=np.zeros((32, 32), np.uint8), modality="")
        if not np.isfinite(self.ranker.rank(blank, PRESETS["modality"])).all():
            raise RuntimeError("classify gives no number for a blank picture")


class KernelModel:
    """What colour alone settles (`certain`); for the rest, kernel ridge regression from features to the kinds, each kind
    and each of its subjects weighing the same.

    Features count by their rank among the reference pictures: one that lies far outside cannot outweigh the others.
    `benchmarks/tools_quality.py` also measures it with one train subject at a time left out, by which it was chosen.
    """

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        """Open the bank of reference pictures and learn from it. Raises AssetError."""
        from medvista_ray.tools.knowledge.case_bank import open_bank
        from medvista_ray.tools.parse.features import Appearance

        self.encoder = Appearance(choice, options)
        self.fit(open_bank(self.encoder.name, self.encoder.fresh))

    def fit(self, bank: CaseBank) -> None:
        """Learn the kinds from the bank's cases."""
        kinds = [case.modality for case in bank.cases]
        self.labels = tuple(label for label in PRESETS["modality"] if label in kinds)
        self._sorted_ND = np.sort(bank.features_ND, axis=0)
        ranks_ND = self._ranks(bank.features_ND)
        self._mean, self._scale = ranks_ND.mean(axis=0), ranks_ND.std(axis=0) + 1e-6
        self._bank_ND = self._inputs(bank.features_ND)
        targets = np.array([[kind == label for label in self.labels] for kind in kinds], np.float64) - 1.0 / len(self.labels)
        groups = [(case.modality, case.subject) for case in bank.cases]
        num_subjects = {kind: len({subject for k, subject in groups if k == kind}) for kind in kinds}
        doubts = np.array([groups.count(group) * num_subjects[group[0]] for group in groups], np.float64)
        self._matrix = np.linalg.solve(_kernel(self._bank_ND, self._bank_ND) + _RIDGE * np.diag(doubts), targets)

    def rank(self, image: MedImage, labels: Sequence[str]) -> NDArray[np.float32]:
        """Shares among `labels`. Raises ToolArgumentError for a kind that it was not taught."""
        columns = [self._column(label) for label in labels]
        scores = self.scores(self.encoder.of(image)[None])[0] * _SHARPNESS
        sure = certain(image.display())
        if sure is not None:
            scores[self.labels.index(sure)] = scores.max() + _MARGIN
        scores = scores[columns]
        shares = np.exp(scores - scores.max())
        return (shares / shares.sum()).astype(np.float32)

    def scores(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, number of `labels`] of pictures by their features; the largest is the kind, unless colour settles it."""
        return _kernel(self._inputs(features_ND), self._bank_ND) @ self._matrix

    def _column(self, label: str) -> int:
        known = ALIASES.get(label.casefold(), label).casefold()
        folded = [own.casefold() for own in self.labels]
        if known not in folded:
            raise ToolArgumentError(f"this classifier does not know {label!r}; it knows: {', '.join(self.labels)}")
        return folded.index(known)

    def _ranks(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, D] share of the reference pictures that have less of a feature."""
        columns = zip(self._sorted_ND.T, features_ND.T, strict=True)
        return np.stack([np.searchsorted(known, own) for known, own in columns], axis=1) / len(self._sorted_ND)

    def _inputs(self, features_ND: NDArray[np.float32]) -> NDArray[np.float64]:
        """[N, D] standardised ranks; the squared distance of two unrelated pictures is about 2."""
        return (self._ranks(features_ND) - self._mean) / self._scale / np.sqrt(len(self._mean))


def certain(display: NDArray[np.uint8]) -> str | None:
    """The kind that colour settles: stained or fluorescent cells, or a grey picture with the coloured marks of a screen."""
    from medvista_ray.tools.parse.features import colour_share
    from medvista_ray.tools.parse.nuclei import stain

    step = max(1, max(display.shape[:2]) // _STAIN_SIDE)
    if stain(display[::step, ::step]) is not None:
        return "microscopy"
    return "ultrasound" if _MARKS[0] < colour_share(display) < _MARKS[1] else None


def _kernel(a_ND: NDArray[np.float64], b_MD: NDArray[np.float64]) -> NDArray[np.float64]:
    """[N, M] Gaussian kernel."""
    squares_NM = (a_ND**2).sum(axis=1)[:, None] + (b_MD**2).sum(axis=1)[None] - 2.0 * a_ND @ b_MD.T
    return np.exp(-np.maximum(squares_NM, 0.0))
