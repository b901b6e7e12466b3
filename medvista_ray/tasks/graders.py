"""Is an answer right? Deterministic, by answer kind, no judge model.

Invariant: only the whole answer counts. A right word inside a longer reply, a range, two numbers or two choices are
wrong, because a substring match pays a policy for hedging. Called by the graders of `scoring`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass

from medvista_ray.errors import UserError
from medvista_ray.types import AnswerKind, Task

_BETWEEN = re.compile(r"[,;\u3001]|\band\b")
_EDGES = " \t\r\n.,;:!?\"'`()[]{}*"
_DASHES = str.maketrans({"\u2212": "-", "\u2013": "-", "\u2014": "-", "\u2010": "-", "\u2011": "-"})
_NUMBER = re.compile(
    r"(?:(?:about|around|approximately|approx\.?|circa|~|\u2248)\s*)?"
    r"(?P<value>[-+]?(?:\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+))"
    r"\s*(?P<unit>%|[a-z\u00b5\u03bc][a-z\u00b5\u03bc]*(?:\^?[23])?(?:/[a-z]+(?:\^?[23])?)?)?"
)
_QUESTION_UNIT = re.compile(r"\bin (?P<unit>[a-z\u00b5\u03bc]+(?:\^?[23])?|%|percent)(?![a-z0-9])")
_CANONICAL = {
    **dict.fromkeys(("millimeter", "millimeters", "millimetre", "millimetres"), "mm"),
    **dict.fromkeys(("centimeter", "centimeters", "centimetre", "centimetres"), "cm"),
    **dict.fromkeys(("micrometer", "micrometers", "micrometre", "micrometres", "um", "micron", "microns"), "\u03bcm"),
    **dict.fromkeys(("pixel", "pixels"), "px"),
    **dict.fromkeys(("milliliter", "milliliters", "millilitre", "millilitres", "cc", "cm3"), "ml"),
    "percent": "%",
    "hounsfield": "hu",
}
_UNITS = {
    "\u03bcm": ("length", 1e-3),
    "mm": ("length", 1.0),
    "cm": ("length", 10.0),
    "m": ("length", 1000.0),
    "mm2": ("area", 1.0),
    "cm2": ("area", 100.0),
    "mm3": ("volume", 1.0),
    "ml": ("volume", 1000.0),
    "px": ("pixels", 1.0),
    "px2": ("pixel area", 1.0),
    "%": ("share", 1.0),
    "hu": ("attenuation", 1.0),
}
"""Unit -> dimension, and factor to the dimension's base."""


@dataclass(frozen=True)
class _Quantity:
    value: float
    unit: str


def grade(task: Task, answer: str | None) -> bool:
    """Whether `answer` is right; None and blank are wrong. Raises UserError if a NUMBER task's gold is no number."""
    if answer is None or not normalise(answer):
        return False
    return _GRADERS[task.kind](task, answer)


def normalise(text: str) -> str:
    """Case, width, white space, dashes and punctuation at the edges do not count; everything else does."""
    folded = unicodedata.normalize("NFKC", text).translate(_DASHES).casefold()
    return " ".join(folded.split()).strip(_EDGES)


def _grade_text(task: Task, answer: str) -> bool:
    return normalise(answer) in {normalise(right) for right in (task.answer, *task.aliases)}


def _grade_list(task: Task, answer: str) -> bool:
    """The same texts in any order: one too many or too few is wrong."""
    return _items(answer) in [_items(right) for right in (task.answer, *task.aliases)]


def _items(text: str) -> list[str]:
    return sorted(item for part in _BETWEEN.split(normalise(text)) if (item := normalise(part)))


def _grade_choice(task: Task, answer: str) -> bool:
    """The choice's own text; or its letter, or letter and text, if the question shows letters. Text goes first."""
    if normalise(answer) in map(normalise, task.choices) or not _has_letters(task):
        return _grade_text(task, answer)
    gold = normalise(task.answer)
    letter = next((chr(ord("a") + i) for i, choice in enumerate(task.choices) if normalise(choice) == gold), None)
    parts = re.fullmatch(r"\(?([a-z])(?:[).:]+\s*(.*))?", normalise(answer))
    if letter is None or parts is None:
        return _grade_text(task, answer)
    return parts[1] == letter and normalise(parts[2] or gold) == gold


def _has_letters(task: Task) -> bool:
    """Whether the question shows every choice behind its letter, as in "A) left", "(A) left" or "A. left"."""
    question = " ".join(task.question.split())
    patterns = (
        rf"(?<!\w)\(?{chr(ord('A') + i)}[).:]\s*{re.escape(' '.join(choice.split()))}" for i, choice in enumerate(task.choices)
    )
    return bool(task.choices) and all(re.search(pattern, question, re.IGNORECASE) for pattern in patterns)


def _grade_number(task: Task, answer: str) -> bool:
    """The only number lies within the relative tolerance or the slack; a unit, if given, must fit the asked one."""
    given = _quantity(answer)
    if given is None:
        return False
    return any(_close(task, given, _gold(task, right)) for right in (task.answer, *task.aliases))


def _close(task: Task, given: _Quantity, gold: _Quantity) -> bool:
    factor = _conversion(task, given.unit, gold.unit)
    if factor is None:
        return False
    allowed = max(task.tolerance * abs(gold.value), task.slack)
    return abs(given.value * factor - gold.value) <= allowed + 1e-9 * max(1.0, abs(gold.value))


def _conversion(task: Task, given: str, asked: str) -> float | None:
    """Factor from the given to the asked unit; None if they do not fit. A number without a unit is taken as asked."""
    if not given or given == asked:
        return 1.0
    if given not in _UNITS:  # "12 nuclei" is right where the question speaks of nuclei
        return 1.0 if not asked and given in re.findall(r"\w+", task.question.casefold()) else None
    if not asked:
        return 1.0
    dimension, factor = _UNITS[given]
    asked_dimension, asked_factor = _UNITS.get(asked, ("", 1.0))
    return factor / asked_factor if dimension == asked_dimension else None


def _gold(task: Task, right: str) -> _Quantity:
    gold = _quantity(right)
    if gold is None:
        raise UserError(f"task {task.id!r}: the gold answer {right!r} of a number question is not one number")
    return _Quantity(gold.value, gold.unit or _asked_unit(task.question))


def _asked_unit(question: str) -> str:
    """The unit that the question asks for ("... in mm?"), if it names a known one."""
    text = unicodedata.normalize("NFKC", question).casefold()
    units = (_canonical(match["unit"]) for match in _QUESTION_UNIT.finditer(text))
    return next((unit for unit in units if unit in _UNITS), "")


def _quantity(text: str) -> _Quantity | None:
    """The text as one number with an optional unit; None if it is anything more."""
    bare = unicodedata.normalize("NFKC", text).translate(_DASHES).casefold().strip().rstrip(" .")
    match = _NUMBER.fullmatch(bare)
    if match is None:
        return None
    return _Quantity(float(match["value"].replace(",", "")), _canonical(match["unit"] or ""))


def _canonical(unit: str) -> str:
    short = unit.replace("^", "").replace("\u00b5", "\u03bc")
    return _CANONICAL.get(short, short)


_GRADERS: dict[AnswerKind, Callable[[Task, str], bool]] = {
    AnswerKind.CHOICE: _grade_choice,
    AnswerKind.NUMBER: _grade_number,
    AnswerKind.TEXT: _grade_text,
    AnswerKind.LIST: _grade_list,
}
