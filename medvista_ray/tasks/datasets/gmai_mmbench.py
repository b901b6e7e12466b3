"""GMAI-MMBench (Chen et al., 2024): multiple-choice questions of 18 clinical tasks over 38 modalities; for evaluation.

GMAI_mm_bench_VAL.tsv: index, image (base64), question, A..E (empty where there are fewer), answer (a letter), category,
clinical vqa task, department, perceptual granularity. The validation file is the test split here; the published test files
carry no answers and are not read. A short image cell is another record's index, as in other files of this layout. The table
(9.34 GB) is streamed, once for its questions, and a picture is read from its place in it.
"""

from __future__ import annotations

import string
from collections.abc import Iterator, Mapping

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.pictures import Reference
from medvista_ray.tasks.datasets.rows import BadRow, Row, letter_index
from medvista_ray.tasks.datasets.tables import read_tsv, require_columns
from medvista_ray.types import Split

_TABLE = "GMAI*VAL*.tsv"
_NEEDED = ("index", "image", "question", "A", "B", "answer")
_MAX_INDEX_LENGTH = 64


class GmaiMmBench(Dataset):
    """The validation file."""

    name = "gmai_mmbench"
    title = "GMAI-MMBench"
    home = "https://huggingface.co/datasets/OpenGVLab/GMAI-MMBench"
    licence = "Apache-2.0 on its card, with access conditions; source sets have their own"
    credit = "Chen, Ye, Wang et al., 2024"
    parts = (Part(_TABLE, "questions and pictures", marks=True),)
    published = counts()
    evaluation_only = True

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question of the validation file."""
        path = min(self.root.glob(_TABLE))
        records = read_tsv(path)
        _, _, header = next(records, (0, 0, [""]))
        require_columns(path, header, _NEEDED)
        column = header.index("image")
        places: dict[str, Reference] = {}
        for offset, length, fields in records:
            if len(fields) > len(header) or len(fields) <= column:
                yield BadRow(f"{path.name} at byte {offset}", f"{len(fields)} fields, the header has {len(header)}")
                continue
            record = dict(zip(header, [*fields, *[""] * (len(header) - len(fields))], strict=True))
            place: Reference = {"tsv": path.name, "offset": offset, "length": length, "column": column}
            if len(record["image"]) <= _MAX_INDEX_LENGTH:
                place = places.get(record["image"], {})
            places[record["index"]] = place
            yield _row(record, place)


def _row(record: Mapping[str, str], place: Reference) -> Row | BadRow:
    letters = [letter for letter in string.ascii_uppercase if record.get(letter, "").strip()]
    choices = tuple(record[letter].strip() for letter in letters)
    index = letter_index(record["answer"], len(string.ascii_uppercase))
    gold = string.ascii_uppercase[index] if index is not None else ""
    if gold not in letters:
        return BadRow(f"index {record['index']}", f"answer {record['answer']!r} is none of {', '.join(letters)}")
    return Row(
        id=record["index"],
        split=Split.TEST,
        case=record["index"],
        question=record["question"],
        answer=record[gold].strip(),
        closed=True,
        choices=choices,
        topic=record.get("clinical vqa task") or "all",
        modality=record.get("modality") or "unknown",
        pictures=(place,) if place else (),
        missing=() if place else (f"image {record['image']!r}",),
        facts={key: record.get(key, "") for key in ("category", "department", "perceptual granularity")},
    )
