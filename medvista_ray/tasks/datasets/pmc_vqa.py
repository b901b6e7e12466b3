"""PMC-VQA (Zhang et al., 2023): four-choice questions on figures of open articles, versions 1 and 2.

Version 1: train.csv and test_clean.csv (the 2,000 checked test questions; test.csv is the unchecked whole and is not read),
pictures in images.zip; Figure_path, Question, Answer, Choice A..D, Answer_label. Version 2: train_2.csv and test_2.csv,
pictures in images_2.zip (folder figures); index, Figure_path, Caption, Question, Choice A..D, Answer, split, where Answer names
the choice, by its letter or in words. Choices carry their letter ("A:..."). The caption is never read: it often holds the
answer. The case is the article, which is how a figure's other panels stay in one split. Scores on the two versions do
not compare.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import ClassVar

from medvista_ray.tasks.datasets.base import Dataset, Part, counts
from medvista_ray.tasks.datasets.rows import BadRow, Row, labelled, without_letter
from medvista_ray.tasks.datasets.tables import read_csv
from medvista_ray.types import Split

_CHOICES = ("Choice A", "Choice B", "Choice C", "Choice D")
_ARTICLE = re.compile(r"PMC\d+")
_CREDIT = "Zhang, Wu, Zhao et al., 2023; figures from PubMed Central"
_LICENCE = "see its card; each figure: its article's"


class _PmcVqa(Dataset):
    """What both versions share."""

    home = "https://huggingface.co/datasets/RadGenome/PMC-VQA"
    licence = _LICENCE
    credit = _CREDIT
    tables: ClassVar[tuple[str, str]]
    """Of the train and of the test split."""
    gold: ClassVar[str]
    """Column with the right choice's letter."""
    folders: ClassVar[tuple[str, ...]]
    archive: ClassVar[str]

    def rows(self) -> Iterator[Row | BadRow]:
        """Every question; ids are "<file>/<row>"."""
        for split, table in zip((Split.TRAIN, Split.TEST), self.tables, strict=True):
            path = self.root / table
            if not path.is_file():
                continue
            for number, record in enumerate(read_csv(path, ("Figure_path", "Question", *_CHOICES, self.gold))):
                yield self._row(record, split, f"{path.stem}/{number}")

    def _row(self, record: Mapping[str, str], split: Split, identifier: str) -> Row | BadRow:
        choices = tuple(without_letter(record[name], i) for i, name in enumerate(_CHOICES))
        answer = self._answer(record, choices)
        if answer is None or not all(choices):
            value = record[self.gold]
            return BadRow(identifier, "an empty choice" if answer else f"{self.gold} {value!r} names no choice")
        name = record["Figure_path"].strip()
        found = self.pictures.find(name, self.folders, (self.archive,))
        article = _ARTICLE.match(name)
        return Row(
            id=identifier,
            split=split,
            case=article[0] if article else name,
            question=record["Question"],
            answer=answer,
            closed=True,
            choices=choices,
            modality="figure",
            pictures=(found,) if found else (),
            missing=() if found else (name,),
        )

    def _answer(self, record: Mapping[str, str], choices: tuple[str, ...]) -> str | None:
        """The choice that is labelled, or spelt out with or without its letter."""
        gold = record[self.gold].strip()
        spelt = {record[name].strip(): choice for name, choice in zip(_CHOICES, choices, strict=True)}
        return labelled(gold, choices) or spelt.get(gold) or (gold if gold in choices and gold else None)


class PmcVqaV1(_PmcVqa):
    """Version 1, tested on the 2,000 checked questions."""

    name = "pmc_vqa_v1"
    title = "PMC-VQA v1 (test_clean)"
    parts = (
        Part("test_clean.csv", "test", marks=True),
        Part("train.csv", "train"),
        Part("images*", "pictures (folder images or images.zip)"),
    )
    published = counts(test=2000)
    tables = ("train.csv", "test_clean.csv")
    gold = "Answer_label"
    folders = ("images", "")
    archive = "images.zip"


class PmcVqaV2(_PmcVqa):
    """Version 2: figures cut into panels."""

    name = "pmc_vqa_v2"
    title = "PMC-VQA v2"
    parts = (
        Part("test_2.csv", "test", marks=True),
        Part("train_2.csv", "train"),
        Part("figures|images_2*", "pictures (folder figures or images_2.zip)"),
    )
    published = counts()
    tables = ("train_2.csv", "test_2.csv")
    gold = "Answer"
    folders = ("figures", "images_2", "images_2/figures", "")
    archive = "images_2.zip"
