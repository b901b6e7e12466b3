"""MedXpertQA-MM (Zuo et al., 2025): five-choice specialist questions on one to six pictures; for evaluation.

MM/dev.jsonl (5) and MM/test.jsonl (2,000): id, question (its choices repeated behind "Answer Choices:"), options {A..E},
label, images[], medical_task, body_system, question_type (Reasoning or Understanding); pictures in images.zip. Chance is 20
%. All pictures of a question are given, in order. `by_family` scores Reasoning and Understanding apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.datasets.tables import read_jsonl
from medvista_ray.types import Split

_TABLES = {Split.VALIDATION: "MM/dev.jsonl", Split.TEST: "MM/test.jsonl"}
_FOLDERS = ("images", "MM/images", "")


class MedXpertQaMm(Dataset):
    """The multimodal half."""

    name = "medxpertqa_mm"
    title = "MedXpertQA-MM"
    home = "https://huggingface.co/datasets/TsinghuaC3I/MedXpertQA"
    licence = "MIT"
    credit = "Zuo, Qu, Li et al., 2025"
    parts = (
        Part(_TABLES[Split.TEST], "test", marks=True),
        Part(_TABLES[Split.VALIDATION], "dev, used as validation", needed=False),
        Part("images*", "pictures (folder images or images.zip)"),
    )
    published = counts(validation=5, test=2000)
    evaluation_only = True

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question."""
        for split, table in _TABLES.items():
            path = self.root / table
            if path.is_file():
                yield from (self._row(record, split, f"{table} row {n}") for n, record in enumerate(read_jsonl(path)))

    def _row(self, record: dict[str, Any], split: Split, where: str) -> Row | BadRow:
        options = record.get("options")
        label = str(record.get("label") or "")
        if not isinstance(options, dict) or label not in options or not record.get("id"):
            return BadRow(where, f"label {label!r} is none of the options, or an id is missing")
        names = [str(name) for name in record.get("images") or ()]
        found = [self.pictures.find(name, _FOLDERS, ("images.zip",)) for name in names]
        return Row(
            id=str(record["id"]),
            split=split,
            case=str(record["id"]),
            question=str(record.get("question") or "").partition("\nAnswer Choices:")[0],
            answer=str(options[label]),
            closed=True,
            choices=tuple(str(options[key]) for key in sorted(options)),
            topic=str(record.get("question_type") or "all"),
            pictures=tuple(reference for reference in found if reference),
            missing=tuple(name for name, reference in zip(names, found, strict=True) if not reference),
            facts={key: str(record.get(key) or "") for key in ("medical_task", "body_system")},
        )
