"""MicroVQA (Burgess et al., 2025): expert multiple-choice questions on research microscopy; for evaluation.

data/*.parquet (the card calls the split test, the files train): key_question, key_image, images_list (a list of pictures),
question, choices, correct_index, task, task_str, and earlier wordings with the suffixes _0.._3, which are not read; neither
are image_caption and the contexts.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.datasets.tables import parquet_columns, read_parquet
from medvista_ray.types import Split

_FILES = "data/*.parquet"
_COLUMNS = ("key_question", "key_image", "images_list", "question", "choices", "correct_index", "task_str")


class MicroVqa(Dataset):
    """All 1,042 questions, as the test split."""

    name = "microvqa"
    title = "MicroVQA"
    home = "https://huggingface.co/datasets/jmhb/microvqa"
    licence = "CC-BY-SA-4.0"
    credit = "Burgess, Nirschl, Bravo-Sanchez et al., 2025"
    parts = (Part(_FILES, "questions and pictures", marks=True),)
    published = counts(test=1042)
    evaluation_only = True

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Whether the parquet files have this set's columns."""
        first = min(folder.glob(_FILES), default=None)
        return first is not None and set(_COLUMNS) <= set(parquet_columns(first))

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question."""
        for path in sorted(self.root.glob(_FILES)):
            name = path.relative_to(self.root).as_posix()
            for index, record in enumerate(read_parquet(path, _COLUMNS)):
                yield _row(record, name, index)


def _row(record: dict[str, Any], name: str, index: int) -> Row | BadRow:
    choices = tuple(str(choice) for choice in record["choices"] or ())
    correct = record["correct_index"]
    if not isinstance(correct, int) or not 0 <= correct < len(choices):
        return BadRow(f"{name} row {index}", f"correct_index {correct!r} is none of {len(choices)} choices")
    num_images = len(record["images_list"] or ())
    return Row(
        id=str(record["key_question"]),
        split=Split.TEST,
        case=str(record["key_image"]),
        question=str(record["question"] or ""),
        answer=choices[correct],
        closed=True,
        choices=choices,
        topic=str(record["task_str"] or "all"),
        modality="microscopy",
        pictures=tuple({"parquet": name, "column": "images_list", "row": index, "item": i} for i in range(num_images)),
    )
