"""Which tools and which prompt an episode was played with, as short content hashes for the log.

Invariant: the version of a tool changes whenever its name, schema, description or source file does, and only then; the
prompt's whenever one character of it does. Called by whoever opens a TrajectoryLog.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from medvista_ray.protocol import system_prompt
from medvista_ray.protocol.prompt import PromptStyle
from medvista_ray.tools.base import Tool

_NUM_DIGITS = 12


@dataclass(frozen=True)
class Provenance:
    """Goes into every line of a log."""

    tool_versions: dict[str, str] = field(default_factory=dict[str, str])
    """Tool on offer -> version."""
    prompt_version: str = ""
    """Of the system prompt; "" if unknown."""

    @classmethod
    def of(cls, specs: Sequence[type[Tool]], max_calls: int, style: PromptStyle = "full") -> Provenance:
        """For these tools, this budget of calls and this style of prompt."""
        prompt = system_prompt(specs, max_calls, style)
        return cls({spec.name: tool_version(spec) for spec in specs}, _short(prompt.encode()))


def tool_version(spec: type[Tool]) -> str:
    """12 hex digits over what the tool is and says, and over the file that defines it, where there is one."""
    said = json.dumps([spec.name, spec.family, spec.description, spec.Args.model_json_schema()], sort_keys=True)
    try:
        source = Path(inspect.getfile(spec)).read_bytes()
    except (OSError, TypeError):  # made in a notebook
        source = b""
    return _short(said.encode() + source)


def _short(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:_NUM_DIGITS]
