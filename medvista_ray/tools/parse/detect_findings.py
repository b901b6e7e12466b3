"""`detect_findings`: what stands out in a picture, with a place and a number, and whether the picture is of a kind that
the detector knows.

Invariant: a finding is a computation on the pixels; a kind of picture without a detector is told as such, never
guessed. By default CT in Hounsfield units (`ct_findings`) and microscopy (`nuclei`) are known, nothing else. Backend
"transformers" runs a user's multi-label classifier, "torchxrayvision" a DenseNet of that package on radiographs.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Protocol

import numpy as np

from medvista_ray.registry import Registry
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import BackendChoice, Family, Index, Tool, ToolArgs, ToolContext, ToolOptions
from medvista_ray.tools.result_cache import ResultCache
from medvista_ray.types import Box, MedImage, ToolResult

DETECTORS = Registry(
    "findings_detector",
    {
        "classical": "medvista_ray.tools.parse.detect_findings:ClassicalDetector",
        "transformers": "medvista_ray.tools.parse.findings_models:ClassifierDetector",
        "torchxrayvision": "medvista_ray.tools.parse.findings_models:XrayDetector",
    },
)
MAX_KEPT = 512
MAX_TOLD = 8


@dataclass(frozen=True)
class Finding:
    """One thing that stands out."""

    finding: str
    value: float
    """What `unit` says."""
    unit: str
    """"probability", "count", "% of the body" or "mm"."""
    bbox: Box | None = None


@dataclass(frozen=True)
class Findings:
    """What a detector says of a picture."""

    items: tuple[Finding, ...]
    in_domain: bool
    """Whether the picture is of a kind that the detector knows."""
    note: str = ""
    """Why not, or what it cannot tell."""


class Detector(Protocol):
    """What finds."""

    def detect(self, image: MedImage) -> Findings:
        """All that stands out."""
        ...


class DetectFindingsArgs(ToolArgs):
    """Arguments of detect_findings."""

    image_index: Index = 0


class DetectFindings(Tool):
    """Findings with a domain check."""

    name: ClassVar[str] = "detect_findings"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "what stands out in a CT or under a microscope."
    Args = DetectFindingsArgs

    detector: Detector
    cache: ResultCache[Findings]

    def setup(self) -> None:
        """Load the detector."""
        self.detector = load_backend(DETECTORS, self.name, self.options, "classical")
        self.cache = ResultCache(MAX_KEPT)

    def run(self, args: DetectFindingsArgs, context: ToolContext) -> ToolResult:
        """Findings, as the detector orders them; none, and a picture of an unknown kind, are results too."""
        image = context.image(args.image_index)
        found = self.cache.get(image.key, lambda: self.detector.detect(image))
        told = "; ".join(map(_words, found.items[:MAX_TOLD])) or ("nothing stands out" if found.in_domain else "no findings")
        data: dict[str, Any] = {
            "findings": [asdict(item) | {"bbox": item.bbox and list(item.bbox)} for item in found.items],
            "in_domain": found.in_domain,
            "note": found.note,
        }
        return ToolResult(text=f"{told}{f' ({found.note})' if found.note else ''}.", data=data)

    def probe(self) -> None:
        """A blank picture gives an answer."""
        self.detector.detect(MedImage(pixels=np.zeros((32, 32), np.int16), modality="", unit="HU"))


class ClassicalDetector:
    """Computations on the pixels: tissue by Hounsfield units, nuclei by their stain."""

    def __init__(self, choice: BackendChoice, options: ToolOptions) -> None:
        del choice, options

    def detect(self, image: MedImage) -> Findings:
        """By the unit of the values (HU is CT), else by whether the pixels look stained or fluorescent."""
        from medvista_ray.tools.parse import ct_findings, nuclei

        if image.unit == "HU":
            return Findings(tuple(ct_findings.detect(image)), True, "by density only")
        kind = nuclei.stain(image.display())
        if kind is None:
            return Findings((), False, "no detector for this kind of picture: only CT in HU and microscopy")
        boxes = nuclei.count(image.display(), kind)
        return Findings((Finding(f"nuclei ({kind})", float(len(boxes)), "count"),), True, "touching nuclei may count as one")


def _words(item: Finding) -> str:
    number = f"{item.value:.2f}" if item.unit == "probability" else f"{item.value:.0f}"
    where = f" at {list(item.bbox)}" if item.bbox else ""
    return f"{item.finding} {number} {item.unit}{where}"
