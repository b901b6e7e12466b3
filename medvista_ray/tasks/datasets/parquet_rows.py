"""What the sets published as parquet with an image, a question and an answer share (VQA-RAD's and PathVQA's re-issues).

The files name no case, so a picture's own bytes are its case: questions on one picture stay in one split. Called by
`vqa_rad` and `path_vqa`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

from medvista_ray.tasks.datasets.base import Dataset
from medvista_ray.tasks.datasets.rows import BadRow, Row, is_yes_no
from medvista_ray.tasks.datasets.tables import cell_bytes, parquet_columns, read_parquet
from medvista_ray.types import Split

COLUMNS = ("image", "question", "answer")
FILES: Mapping[Split, str] = {split: f"data/{split}-*.parquet" for split in (Split.TRAIN, Split.VALIDATION, Split.TEST)}


class ImageQuestionAnswer(Dataset):
    """data/<split>-*.parquet with the columns image, question, answer. Closed is what is answered by yes or no."""

    modality = "unknown"

    @classmethod
    def fits(cls, folder: Path) -> bool:
        """Whether the marks are there and have the columns."""
        if not super().fits(folder):
            return False
        first = next(iter(sorted(folder.glob(FILES[Split.TEST]))))
        return set(COLUMNS) <= set(parquet_columns(first))

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question; ids are "<split>/<row>", counted through the split's files."""
        for split, pattern in FILES.items():
            number = 0
            for path in sorted(self.root.glob(pattern)):
                name = path.relative_to(self.root).as_posix()
                for index, record in enumerate(read_parquet(path, COLUMNS)):
                    try:
                        case = hashlib.sha256(cell_bytes(record["image"])).hexdigest()[:16]
                    except KeyError as error:
                        yield BadRow(f"{name} row {index}", str(error.args[0]))
                        continue
                    answer = str(record["answer"] or "").strip()
                    yield Row(
                        id=f"{split}/{number}",
                        split=split,
                        case=case,
                        question=str(record["question"] or ""),
                        answer=answer,
                        closed=is_yes_no(answer),
                        modality=self.modality,
                        pictures=({"parquet": name, "column": "image", "row": index},),
                    )
                    number += 1
