"""One published question, the same for every set, and how it becomes a task.

Invariant: a row without a gold answer or without all its pictures never becomes a task; it is counted. The text that a
policy reads is the question, its lettered choices and one line that says which form of answer is graded. Called by
`Dataset`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from medvista_ray.tasks.datasets.pictures import Reference
from medvista_ray.types import AnswerKind, Box, Split, Task

YES_NO = ("yes", "no")
FORM_LINES = {"choice": "Answer with one letter.", "yes_no": "Answer yes or no.", "open": "Answer with a word or a short phrase."}
_LIST = re.compile(r"[,;\u3001\uff0c]")


@dataclass(frozen=True, kw_only=True)
class Row:
    """One question of a set."""

    id: str
    """Unique in its set."""
    split: Split | None
    """Published split; None if the set has none."""
    case: str
    """What must not be in two splits: the patient's case, the article, else the picture."""
    question: str
    """Without its choices."""
    answer: str
    """Gold text; empty if it is not published."""
    pictures: tuple[Reference, ...]
    missing: tuple[str, ...] = ()
    """Names of pictures that the row points to and that are not there."""
    closed: bool = False
    """Whether the set counts it as closed (a choice, yes or no, or a word out of few)."""
    choices: tuple[str, ...] = ()
    kind: AnswerKind | None = None
    """None: by the form of the gold answer."""
    aliases: tuple[str, ...] = ()
    slack: float = 0.0
    topic: str = "all"
    """The set's own group of questions, for tables."""
    modality: str = "unknown"
    regions: tuple[Box, ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True)
class BadRow:
    """A record that breaks the set's own format."""

    where: str
    why: str


def is_usable(row: Row) -> bool:
    """Whether it can be asked and graded."""
    return bool(row.answer and row.pictures and not row.missing)


def to_task(row: Row, source: str, split: Split, grader: str = "words") -> Task:
    """The row as a task of that split, whose answers that grader grades."""
    kind = row.kind or kind_of(row)
    choices = row.choices or (YES_NO if kind is AnswerKind.CHOICE else ())
    form = "closed" if row.closed or kind is AnswerKind.CHOICE else "open"
    return Task(
        id=f"{source}/{row.id}",
        source=source,
        family=f"{form}_{slug(row.topic)}",
        split=split,
        subject=f"{source}/{row.case}",
        modality=row.modality or "unknown",
        question=question_text(row, kind),
        answer=row.answer,
        kind=kind,
        choices=choices,
        slack=row.slack,
        aliases=row.aliases,
        grader=grader,
        chance=1.0 / len(choices) if choices else 0.0,
        num_images=len(row.pictures),
        regions=row.regions,
        facts={"form": form, "topic": row.topic, **row.facts},
        recipe={"pictures": [dict(reference) for reference in row.pictures], "modality": row.modality or "unknown"},
    )


def kind_of(row: Row) -> AnswerKind:
    """CHOICE with choices or for yes and no, LIST for several items in an open answer, else TEXT."""
    if row.choices or is_yes_no(row.answer):
        return AnswerKind.CHOICE
    return AnswerKind.LIST if not row.closed and _LIST.search(row.answer) else AnswerKind.TEXT


def is_yes_no(answer: str) -> bool:
    """Whether the gold answer is yes or no."""
    return answer.strip().casefold().rstrip(".") in YES_NO


def question_text(row: Row, kind: AnswerKind) -> str:
    """What the policy reads."""
    lines = [row.question.strip(), *(f"{chr(ord('A') + i)}) {choice}" for i, choice in enumerate(row.choices))]
    form = "choice" if row.choices else "yes_no" if kind is AnswerKind.CHOICE else "open"
    return "\n".join([*lines, FORM_LINES[form]])


def letter_index(letter: str, num_choices: int) -> int | None:
    """Position of the choice that a label such as "B" names; None if it names none."""
    bare = letter.strip().upper().rstrip(".):")
    index = ord(bare) - ord("A") if len(bare) == 1 else -1
    return index if 0 <= index < num_choices else None


def without_letter(choice: str, index: int) -> str:
    """A choice's text without its own prefix, as in " A:Diffuse uptake"."""
    return re.sub(rf"^\s*{chr(ord('A') + index)}\s*[:.)]\s*", "", choice).strip()


def slug(text: str) -> str:
    """Lower-case words with underscores."""
    return "_".join(re.findall(r"\w+", text.casefold())) or "all"


def labelled(letter: str, choices: Sequence[str]) -> str | None:
    """Text of the choice that the label names."""
    index = letter_index(letter, len(choices))
    return None if index is None else choices[index]
