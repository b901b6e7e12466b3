"""A question before it has an identity. Families make drafts; the source turns them into tasks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from medvista_ray.types import AnswerKind, Box


@dataclass(frozen=True, kw_only=True)
class Draft:
    """The fields of a `Task` that a family decides (see `types.Task`)."""

    subject: str
    modality: str
    question: str
    answer: str
    kind: AnswerKind
    chance: float
    recipe: Mapping[str, Any]
    choices: tuple[str, ...] = ()
    tolerance: float = 0.0
    slack: float = 0.0
    aliases: tuple[str, ...] = ()
    regions: tuple[Box, ...] = ()
    plan: tuple[str, ...] = field(default=())
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])
