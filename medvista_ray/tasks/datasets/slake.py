"""SLAKE (Liu et al., 2021): bilingual questions on CT, MRI and X-ray, with organ masks, boxes and a knowledge graph.

train.json, validation.json (validate.json in an early revision), test.json: img_id, img_name, question, answer, q_lang,
location, modality, answer_type, base_type, content_type, triple, qid. imgs/xmlabN/ (or imgs.zip): source.jpg, mask.png,
detection.json. "slake" asks the English questions, "slake_zh" the Chinese ones; they are never mixed. Pictures of a split are
published apart, and a picture is the finest case there is.

What a tool's arguments can be held against: `Task.regions` (boxes of the organs that question or answer name),
`facts["boxes"]` (all of them, by organ), `facts["lookup"]` (entity, relation and values of the question's triple),
`masks(task)`. None of it is shown to a policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import DatasetError
from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.pictures import decode
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.datasets.slake_labels import (
    NO_VALUE,
    Boxes,
    Triple,
    boxes_of,
    mask_names,
    named_boxes,
    triples_of,
)
from medvista_ray.tasks.datasets.tables import read_json
from medvista_ray.types import Split, Task

_TABLES = {Split.TRAIN: ("train.json",), Split.VALIDATION: ("validation.json", "validate.json"), Split.TEST: ("test.json",)}
_FOLDERS = ("imgs", "imgs/imgs", "")
_ARCHIVES = ("imgs.zip",)
_NEEDED = ("qid", "img_id", "img_name", "question", "answer", "q_lang", "answer_type")
_VISUAL_HEAD = "vhead"
"""In a triple: the entity is to be seen in the picture."""


class Slake(Dataset):
    """The English questions."""

    name = "slake"
    title = "SLAKE (English)"
    home = "https://huggingface.co/datasets/BoKelvin/SLAKE"
    licence = "CC-BY-4.0"
    credit = "Liu, Zhan, Xu, Ma, Yang, Wu, 2021"
    parts = (
        Part("train.json", "train"),
        Part("validation.json|validate.json", "validation"),
        Part("test.json", "test", marks=True),
        Part("imgs*", "pictures, masks, boxes (folder imgs or imgs.zip)", marks=True),
        Part("mask.txt", "organ of each mask value", needed=False),
        Part("KG*", "knowledge graph (folder KG or KG.zip)", needed=False),
    )
    published = counts(train=4919, validation=1053, test=1061)
    code = "en"

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question of the language."""
        seen: dict[str, Boxes] = {}
        for split, names in _TABLES.items():
            path = next((self.root / name for name in names if (self.root / name).is_file()), None)
            for number, record in enumerate(read_json(path) if path else ()):
                lacking = [key for key in _NEEDED if record.get(key) in (None, "")]
                if lacking:
                    yield BadRow(f"{split} record {number}", f"no {lacking[0]}")
                elif record["q_lang"] == self.code:
                    yield self._row(record, split, seen)

    def masks(self, task: Task) -> dict[str, NDArray[np.bool_]]:
        """[H, W] mask of each organ in the task's picture, by name. Raises DatasetError if mask.png or mask.txt is not there."""
        name = f"{task.facts['folder']}/mask.png"
        reference = self.pictures.find(name, _FOLDERS, _ARCHIVES)
        if reference is None or not self._mask_names:
            raise DatasetError(f"{self.title} in {str(self.root)!r} has no {name if reference is None else 'mask.txt'}")
        values = decode(self.pictures.read(reference), "mask", name).display()[:, :, 0]
        return {organ: values == value for value, organ in self._mask_names.items() if bool((values == value).any())}

    def triples(self) -> tuple[Triple, ...]:
        """The knowledge graph, (entity, relation, value) each; empty without KG."""
        return self._triples

    def _row(self, record: dict[str, Any], split: Split, seen: dict[str, Boxes]) -> Row:
        name = str(record["img_name"])
        found = self.pictures.find(name, _FOLDERS, _ARCHIVES)
        folder = str(PurePosixPath(name).parent)
        if folder not in seen:
            seen[folder] = self._boxes(name, folder)
        boxes = seen[folder]
        question, answer = str(record["question"]), str(record["answer"]).strip()
        return Row(
            id=str(record["qid"]),
            split=split,
            case=f"xmlab{record['img_id']}",
            question=question,
            answer=answer,
            closed=str(record["answer_type"]).strip().upper() == "CLOSED",
            topic=str(record.get("content_type") or "all"),
            modality=str(record.get("modality") or "unknown"),
            pictures=(found,) if found else (),
            missing=() if found else (name,),
            regions=named_boxes(boxes, f"{question} {answer}"),
            facts={
                "folder": folder,
                "boxes": boxes,
                "lookup": self._lookup(record),
                "location": str(record.get("location") or ""),
            },
        )

    def _boxes(self, name: str, folder: str) -> Boxes:
        reference = self.pictures.find(f"{folder}/detection.json", _FOLDERS, _ARCHIVES)
        source = self.pictures.find(name, _FOLDERS, _ARCHIVES)
        if reference is None or source is None:
            return {}
        return boxes_of(self.pictures.read(reference), self.pictures.read(source), f"{folder}/detection.json")

    def _lookup(self, record: Mapping[str, Any]) -> dict[str, Any]:
        """{"entity", "relation", "values"} that answers a knowledge question; no entity where it must be seen first."""
        head, relation, *_ = [*map(str, record.get("triple") or ()), NO_VALUE, NO_VALUE]
        if relation == NO_VALUE:
            return {}
        values = [tail for entity, kind, tail in self._triples if (entity.casefold(), kind) == (head.casefold(), relation)]
        return {"entity": None if head in (_VISUAL_HEAD, NO_VALUE) else head, "relation": relation, "values": values}

    @cached_property
    def _mask_names(self) -> dict[int, str]:
        return mask_names(self.root / "mask.txt")

    @cached_property
    def _triples(self) -> tuple[Triple, ...]:
        return triples_of(self.root, self.code)


class SlakeChinese(Slake):
    """The Chinese questions, with F1 and recall over characters."""

    name = "slake_zh"
    title = "SLAKE (Chinese)"
    published = counts(train=4916, validation=1046, test=1033)
    code = "zh"
    language = "Chinese"
    grader = "characters"
