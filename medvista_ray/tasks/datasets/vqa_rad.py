"""VQA-RAD (Lau et al., 2018): clinicians' questions on radiology pictures of MedPix, as published on OSF and as parquet.

OSF (osf.io/89kps): "VQA_RAD Dataset Public.json" (a list; qid, phrase_type, image_name, image_case_url, image_organ,
question, question_type, answer, answer_type, ...) beside "VQA_RAD Image Folder". The test split is what phrase_type calls
test_*. It shares pictures with the training questions: "clean" splits take those out by `image_case_url`. The parquet re-issue
(flaviagiammarino/vqa-rad) lost answer_type and the case: there, closed means yes or no and a case is a picture.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.parquet_rows import FILES, ImageQuestionAnswer
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.datasets.tables import read_json
from medvista_ray.types import Split

_TABLE = "VQA_RAD*Public.json"
_FOLDERS = ("VQA_RAD Image Folder", "VQA_RAD_Image_Folder", "images", "")
_ARCHIVES = ("VQA_RAD Image Folder.zip", "images.zip")
_CREDIT = "Lau, Gayen, Ben Abacha, Demner-Fushman, 2018; pictures from MedPix"
_NEEDED = ("qid", "phrase_type", "image_name", "question", "answer", "answer_type")


class VqaRad(Dataset):
    """The original file: the split of the paper, answer types, question types and MedPix cases."""

    name = "vqa_rad"
    title = "VQA-RAD"
    home = "https://osf.io/89kps"
    licence = "CC0-1.0"
    credit = _CREDIT
    parts = (Part(_TABLE, "questions", marks=True), Part("*Image*", "pictures (folder or zip)"))
    published = counts(train=1797, test=451)

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question."""
        path = min(self.root.glob(_TABLE))
        for number, record in enumerate(read_json(path)):
            lacking = [key for key in _NEEDED if record.get(key) in (None, "")]
            if lacking:
                yield BadRow(f"{path.name} record {number}", f"no {lacking[0]}")
            else:
                yield self._row(record)

    def _row(self, record: dict[str, Any]) -> Row:
        name = str(record["image_name"])
        found = self.pictures.find(name, _FOLDERS, _ARCHIVES)
        case = str(record.get("image_case_url") or "").strip()
        return Row(
            id=str(record["qid"]),
            split=Split.TEST if str(record["phrase_type"]).strip().startswith("test") else Split.TRAIN,
            case=case or name,
            question=str(record["question"]),
            answer=str(record["answer"]).strip(),
            closed=str(record["answer_type"]).strip().upper() == "CLOSED",
            topic=str(record.get("question_type") or "all").strip(),
            modality="radiology",
            pictures=(found,) if found else (),
            missing=() if found else (name,),
            facts={"organ": str(record.get("image_organ") or "").strip()},
        )


class VqaRadParquet(ImageQuestionAnswer):
    """The parquet re-issue."""

    name = "vqa_rad_parquet"
    title = "VQA-RAD (parquet)"
    home = "https://huggingface.co/datasets/flaviagiammarino/vqa-rad"
    licence = "CC0-1.0"
    credit = _CREDIT
    parts = (Part(FILES[Split.TRAIN], "train", marks=True), Part(FILES[Split.TEST], "test", marks=True))
    published = counts(train=1793, test=451)
    modality = "radiology"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """PathVQA has the same columns, and a validation split as well."""
        return super().fits(folder) and not any(folder.glob(FILES[Split.VALIDATION]))
