"""MMMU-Med: the five health subjects of MMMU (Yue et al., 2024); for evaluation.

<Subject>/{dev,validation,test}-*.parquet: id, question, options (a Python list as text), answer, image_1..image_7,
question_type (multiple-choice or open), subfield, ... The 150 validation questions are the test split here, dev is
validation; the answers of the published test split are hidden, so it is counted and never asked. All pictures are given
("<image 2>" becomes "[image 1]", the number that tools use), options that are pictures too. An answer that names no option is
wrong: the official parser would draw one.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from typing import Any

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.rows import BadRow, Row, labelled
from medvista_ray.tasks.datasets.tables import parquet_columns, read_parquet
from medvista_ray.types import AnswerKind, Split

SUBJECTS = (
    "Basic_Medical_Science",
    "Clinical_Medicine",
    "Diagnostics_and_Laboratory_Medicine",
    "Pharmacy",
    "Public_Health",
)
_FILES = {"dev": Split.VALIDATION, "validation": Split.TEST, "test": Split.TEST}
_IMAGES = tuple(f"image_{i}" for i in range(1, 8))
_TEXTS = ("id", "question", "options", "answer", "question_type", "subfield")
_MARK = re.compile(r"<image\s*(\d+)>")
_ROUNDING = 0.005
"""Numbers are compared to two decimals, as the official evaluation does."""


class MmmuMed(Dataset):
    """The five subjects together."""

    name = "mmmu_med"
    title = "MMMU-Med"
    home = "https://huggingface.co/datasets/MMMU/MMMU"
    licence = "Apache-2.0"
    credit = "Yue, Ni, Zhang et al., 2024"
    parts = tuple(Part(f"{name}/validation-*.parquet", name, marks=name == "Clinical_Medicine") for name in SUBJECTS)
    published = counts(validation=25, test=150)
    evaluation_only = True

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question of the five subjects, those without a published answer too."""
        for subject in SUBJECTS:
            for stem, split in _FILES.items():
                for path in sorted(self.root.glob(f"{subject}/{stem}-*.parquet")):
                    name = path.relative_to(self.root).as_posix()
                    images = [column for column in _IMAGES if column in parquet_columns(path)]
                    for index, record in enumerate(read_parquet(path, (*_TEXTS, *images))):
                        there = [column for column in images if record[column] is not None]
                        pictures = tuple({"parquet": name, "column": column, "row": index} for column in there)
                        yield _row(record, split, subject, pictures, there)


def _row(record: dict[str, Any], split: Split, subject: str, pictures: Any, columns: list[str]) -> Row | BadRow:
    identifier = str(record["id"])
    numbers = {int(column.removeprefix("image_")): index for index, column in enumerate(columns)}
    options, golds = _listed(record["options"]), _golds(str(record["answer"] or ""))
    if record["question_type"] == "multiple-choice" and golds:
        choices = tuple(_renumber(str(option), numbers) for option in options)
        gold = labelled(golds[0], choices)
        if gold is None:
            return BadRow(identifier, f"answer {record['answer']!r} is none of {len(choices)} options")
        golds, kind = [gold], AnswerKind.CHOICE
    else:
        choices, kind = (), AnswerKind.NUMBER if golds and all(map(_is_number, golds)) else None
    return Row(
        id=identifier,
        split=split,
        case=identifier,
        question=_renumber(str(record["question"]), numbers),
        answer=golds[0] if golds else "",
        aliases=tuple(golds[1:]),
        closed=bool(choices),
        choices=choices,
        kind=kind,
        slack=_ROUNDING if kind is AnswerKind.NUMBER else 0.0,
        topic=subject,
        pictures=pictures,
        facts={"subfield": str(record["subfield"] or "")},
    )


def _golds(answer: str) -> list[str]:
    """Right answers; an open one may be a list, and "?" stands for a hidden one."""
    if answer.strip() in ("", "?"):
        return []
    return [str(item) for item in _listed(answer)] or [answer]


def _listed(text: Any) -> list[Any]:
    """A Python list that is written as text; empty if it is none."""
    try:
        value = ast.literal_eval(str(text))
    except (ValueError, SyntaxError):
        return []
    return value if isinstance(value, list) else []


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d+)?", text.strip()) is not None


def _renumber(text: str, numbers: dict[int, int]) -> str:
    """ "<image 2>" as "[image 1]": tools and masks count from 0."""
    return _MARK.sub(lambda match: f"[image {numbers.get(int(match[1]), int(match[1]) - 1)}]", text)
