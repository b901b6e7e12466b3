"""Scores of many answers on a set: closed accuracy, open exact match, open F1 and recall, overall. Deterministic.

Invariant: what a task's grader calls right is right everywhere, in a table (`score_set`) as in reward and evaluation
(`is_right`); F1 and recall stand beside it and never replace it. An answer that cannot be read is wrong and counted, never
guessed; a group without questions scores None, never 0. A judge model is a separate column (`judge`) and touches none of
these. Called by the rewards and by `medvista-ray data score`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from medvista_ray.registry import Registry
from medvista_ray.tasks.graders import grade
from medvista_ray.types import AnswerKind, Task

GRADERS = Registry(
    "grader",
    {
        "words": "medvista_ray.tasks.scoring:grade_words",
        "characters": "medvista_ray.tasks.scoring:grade_characters",
    },
)
_ARTICLES = frozenset({"a", "an", "the"})
_WORD = re.compile(r"\d+(?:\.\d+)?|[^\W\d_]+")


@dataclass(frozen=True, kw_only=True)
class Score:
    """One answer."""

    correct: bool
    f1: float
    """Of the tokens shared with the gold answer, 0..1."""
    recall: float
    """Share of the gold answer's tokens that the answer has, 0..1."""


class Grader(Protocol):
    """Scores one answer; None is no answer."""

    def __call__(self, task: Task, answer: str | None) -> Score:
        """The score."""
        ...


def load_grader(name: str) -> Grader:
    """The grader of that name, or of a "module:attribute" string. Raises UnknownNameError."""
    return GRADERS.load(name)


def is_right(task: Task, answer: str | None) -> bool:
    """Whether the task's own grader calls `answer` right. Raises UnknownNameError if there is no such grader."""
    return load_grader(task.grader)(task, answer).correct


def grade_words(task: Task, answer: str | None) -> Score:
    """Right by the task's own kind; F1 and recall over words, as SQuAD counts them (Rajpurkar et al., 2016)."""
    return _score(task, answer, words)


def grade_characters(task: Task, answer: str | None) -> Score:
    """As `grade_words`, over characters, for languages that write without spaces."""
    return _score(task, answer, lambda text: [char for word in words(text) for char in word])


def words(text: str) -> list[str]:
    """Lower-case words and numbers, without articles and punctuation: "5.6cm" and "5.6 cm" are the same two."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return [word for word in _WORD.findall(folded) if word not in _ARTICLES]


def _score(task: Task, answer: str | None, tokens: Tokens) -> Score:
    overlaps = [_overlap(tokens(answer or ""), tokens(gold)) for gold in (task.answer, *task.aliases)]
    return Score(correct=grade(task, answer), f1=max(f1 for f1, _ in overlaps), recall=max(recall for _, recall in overlaps))


class Tokens(Protocol):
    """Cuts a text."""

    def __call__(self, text: str, /) -> Sequence[str]:
        """Its tokens."""
        ...


def _overlap(given: Sequence[str], gold: Sequence[str]) -> tuple[float, float]:
    """F1 and recall of two bags of tokens; both 0 if either is empty."""
    shared = sum((Counter(given) & Counter(gold)).values())
    return (2 * shared / (len(given) + len(gold)), shared / len(gold)) if shared else (0.0, 0.0)


def is_closed(task: Task) -> bool:
    """Whether the task counts as closed: a choice, or what its set calls closed."""
    return task.kind is AnswerKind.CHOICE or task.facts.get("form") == "closed"


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """A set's table. Shares are 0..1, None where there is no such question."""

    num_tasks: int
    num_closed: int
    num_open: int
    num_unanswered: int
    """Scored as wrong."""
    closed_accuracy: float | None
    open_exact: float | None
    open_f1: float | None
    open_recall: float | None
    overall: float | None
    """Right answers of all questions: closed by accuracy, open by exact match."""
    by_family: Mapping[str, float]
    """Right answers in each family of questions."""


def score_set(tasks: Iterable[Task], answers: Mapping[str, str | None], grader: Grader) -> SetScore:
    """Score `answers` (by task id) to `tasks`; a task without an answer is wrong."""
    pairs = [(task, grader(task, answers.get(task.id))) for task in tasks]
    closed = [score for task, score in pairs if is_closed(task)]
    opened = [score for task, score in pairs if not is_closed(task)]
    families = sorted({task.family for task, _ in pairs})
    return SetScore(
        num_tasks=len(pairs),
        num_closed=len(closed),
        num_open=len(opened),
        num_unanswered=sum(not (answers.get(task.id) or "").strip() for task, _ in pairs),
        closed_accuracy=mean(score.correct for score in closed),
        open_exact=mean(score.correct for score in opened),
        open_f1=mean(score.f1 for score in opened),
        open_recall=mean(score.recall for score in opened),
        overall=mean(score.correct for _, score in pairs),
        by_family={name: mean(s.correct for t, s in pairs if t.family == name) or 0.0 for name in families},
    )


def mean(values: Iterable[float]) -> float | None:
    """The mean; None of nothing."""
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else None
