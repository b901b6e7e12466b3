"""The tools that ship with the library, and the door for others: entry points or "module:Class" names."""

from __future__ import annotations

from collections.abc import Iterable

from medvista_ray.errors import ConfigError, did_you_mean
from medvista_ray.registry import Registry
from medvista_ray.tools.base import Tool
from medvista_ray.types import ErrorCode

TOOLS = Registry(
    "tool",
    {
        "zoom_in": "medvista_ray.tools.refine.zoom_in:ZoomIn",
        "super_resolve": "medvista_ray.tools.refine.super_resolve:SuperResolve",
        "enhance": "medvista_ray.tools.refine.enhance:Enhance",
        "compare_regions": "medvista_ray.tools.refine.compare_regions:CompareRegions",
        "ground": "medvista_ray.tools.localize.ground:Ground",
        "segment_prompt": "medvista_ray.tools.localize.segment_prompt:SegmentPrompt",
        "segment_text": "medvista_ray.tools.localize.segment_text:SegmentText",
        "segment_medical": "medvista_ray.tools.localize.segment_medical:SegmentMedical",
        "measure": "medvista_ray.tools.parse.measure:Measure",
        "classify": "medvista_ray.tools.parse.classify:Classify",
        "detect_findings": "medvista_ray.tools.parse.detect_findings:DetectFindings",
        "read_text": "medvista_ray.tools.parse.read_text:ReadText",
        "search_text": "medvista_ray.tools.knowledge.search_text:SearchText",
        "lookup_concept": "medvista_ray.tools.knowledge.lookup_concept:LookupConcept",
        "similar_cases": "medvista_ray.tools.knowledge.similar_cases:SimilarCases",
    },
)


def load_tools(names: Iterable[str]) -> tuple[type[Tool], ...]:
    """Tool classes by registered name or "module:Class", in that order; imports no heavy library.

    Raises UnknownNameError for a name that does not load, ConfigError for a thing that is no tool or a repeated name.
    """
    specs = tuple(TOOLS.load(name) for name in names)
    seen: set[str] = set()
    for spec in specs:
        if not (isinstance(spec, type) and issubclass(spec, Tool)):
            raise ConfigError(f"tools: {spec!r} is not a subclass of medvista_ray.tools.base.Tool")
        if spec.name in seen:
            raise ConfigError(f"tools: {spec.name!r} is given twice")
        seen.add(spec.name)
    return specs


def unknown_tool(name: str, specs: Iterable[type[Tool]]) -> tuple[ErrorCode, str]:
    """The error code and the words for a call of a tool that is not on offer."""
    return ErrorCode.E1, f"unknown tool {name[:40]!r}; {did_you_mean(name, [spec.name for spec in specs])}"
