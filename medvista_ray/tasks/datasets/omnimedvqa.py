"""OmniMedVQA (Hu et al., 2024): questions with 2 to 4 choices made from 73 classification sets of 12 modalities.

QA_information/{Open-access,Restricted-access}/<set>.json (lists; dataset, question_id, question_type, question, gt_answer,
image_path, option_A..D, modality_type, which one record of "Chest CT Scan" calls modality) and Images/... The gold is the
option's text, not its letter. Nothing is split officially, so every question goes by the pinned hash of its picture: papers'
own splits are not comparable with it. Licences differ by source set; restricted sets come without pictures, and their
questions are counted as missing.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.datasets.tables import read_json
from medvista_ray.tasks.graders import normalise

_TABLES = "QA_information/*/*.json"
_OPTIONS = ("option_A", "option_B", "option_C", "option_D")


class OmniMedVqa(Dataset):
    """All sets whose tables are there."""

    name = "omnimedvqa"
    title = "OmniMedVQA"
    home = "https://huggingface.co/datasets/foreverbeliever/OmniMedVQA"
    licence = "differs by source set"
    credit = "Hu, Li, Lu et al., 2024"
    parts = (Part(_TABLES, "questions by source set", marks=True), Part("Images", "pictures"))
    published = counts()

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question; ids are the set's own, behind the name of its table."""
        for path in sorted(self.root.glob(_TABLES)):
            for number, record in enumerate(read_json(path)):
                yield self._row(record, path.stem, f"{path.stem} record {number}", path.parent.name)

    def _row(self, record: dict[str, Any], table: str, where: str, access: str) -> Row | BadRow:
        choices = tuple(text for name in _OPTIONS if (text := str(record.get(name) or "").strip()))
        gold = normalise(str(record.get("gt_answer") or ""))
        answer = next((choice for choice in choices if normalise(choice) == gold), None)
        name = str(record.get("image_path") or "")
        if answer is None or len(choices) < 2 or not name or not record.get("question_id"):
            return BadRow(where, f"gt_answer {record.get('gt_answer')!r} is none of {len(choices)} options, or an id is missing")
        found = self.pictures.find(name)
        return Row(
            id=f"{table}/{record['question_id']}",
            split=None,
            case=name,
            question=str(record.get("question") or ""),
            answer=answer,
            closed=True,
            choices=choices,
            topic=str(record.get("question_type") or "all"),
            modality=str(record.get("modality_type") or record.get("modality") or "unknown"),
            pictures=(found,) if found else (),
            missing=() if found else (name,),
            facts={"dataset": str(record.get("dataset") or table), "access": access},
        )
