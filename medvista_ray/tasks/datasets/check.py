"""What is in a folder: which sets, how many questions in which split, what is missing or damaged, and what leaks.

Invariant: the check opens what the training would open, and counts every record: questions = used + dropped + without answer +
without picture + bad. A leak is a case, or a picture of the same pixels, in two splits. Called by `commands`.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from medvista_ray.config import BenchConfig
from medvista_ray.errors import DatasetError, UserError
from medvista_ray.tasks.datasets import DATASETS
from medvista_ray.tasks.datasets.base import Dataset
from medvista_ray.tasks.datasets.pictures import Reference, decode
from medvista_ray.tasks.datasets.rows import BadRow, Row
from medvista_ray.tasks.source import SOURCES
from medvista_ray.types import Split

Progress = Callable[[int, int], None]
"""Told how many pictures of how many are read."""
_MAX_EXAMPLES = 5
_MAX_HASHED_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class Leaks:
    """What is in more than one split."""

    num_cases: int
    num_pictures: int
    """Distinct pictures by content."""
    examples: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.num_cases or self.num_pictures)


@dataclass(kw_only=True)
class CheckReport:
    """The findings on one set."""

    name: str
    title: str
    root: Path
    licence: str
    language: str
    grader: str
    splits: str
    """How it is split: "clean", "published" or "case"."""
    fingerprint: str
    """Of the names, sizes and (of small files) contents of its tables: two reports with one fingerprint saw one revision."""
    absent_parts: list[str] = field(default_factory=list[str])
    num_published: dict[str, int] = field(default_factory=dict[str, int])
    """Questions with an answer by published split ("none" if the set has no splits)."""
    num_expected: dict[str, int] = field(default_factory=dict[str, int])
    """What the set's authors count."""
    num_used: dict[str, int] = field(default_factory=dict[str, int])
    num_closed: dict[str, int] = field(default_factory=dict[str, int])
    """Of the used ones."""
    num_dropped: dict[str, int] = field(default_factory=dict[str, int])
    """Left out, since their case is in another split."""
    num_without_answer: int = 0
    num_without_picture: int = 0
    num_bad: int = 0
    num_pictures: int = 0
    """Distinct pictures that were read."""
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    """A few missing pictures, bad records and damaged pictures."""
    num_damaged: int = 0
    leaks_published: Leaks | None = None
    """Between the splits as published."""
    leaks_used: Leaks | None = None
    """Between the splits as used."""

    @property
    def problems(self) -> list[str]:
        """What should be mended before the set is used, in words; empty if it is sound."""
        found = [f"absent: {part}" for part in self.absent_parts]
        counted = (
            (self.num_without_picture, "questions without their pictures"),
            (self.num_bad, "records that break the format"),
            (self.num_damaged, "damaged pictures"),
        )
        found += [f"{number} {what}" for number, what in counted if number]
        if self.leaks_used:
            found.append(f"{self.leaks_used.num_cases} cases and {self.leaks_used.num_pictures} pictures in two used splits")
        return found

    @property
    def notes(self) -> list[str]:
        """What is worth knowing: another revision than the published count, leaks that the used splits mend."""
        found = [
            f"{split}: {self.num_published.get(split, 0)} questions, its authors count {number}"
            for split, number in self.num_expected.items()
            if number and self.num_published.get(split, 0) != number
        ]
        if self.leaks_published:
            leaks = self.leaks_published
            found.append(f"published splits share {leaks.num_cases} cases and {leaks.num_pictures} pictures")
        return found


def find_sets(folder: Path, name: str | None = None) -> list[type[Dataset]]:
    """The sets in `folder` (or in a folder directly below it), or just the named one.

    Raises DatasetError if there is none, UnknownNameError for an unknown name.
    """
    if name is not None:
        kind: type[Dataset] = SOURCES.load(name)
        kind.locate(folder)
        return [kind]
    if not folder.expanduser().is_dir():
        raise DatasetError(f"{str(folder)!r} is no folder")
    found = [kind for known in DATASETS for kind in [SOURCES.load(known)] if _is_there(kind, folder)]
    if not found:
        raise DatasetError(f"no known set is in {str(folder)!r}; `medvista-ray data list` shows what each is recognised by")
    return found


def _is_there(kind: type[Dataset], folder: Path) -> bool:
    try:
        kind.locate(folder)
    except DatasetError:
        return False
    return True


def check(
    kind: type[Dataset], folder: Path, splits: str = "clean", pictures: bool = True, progress: Progress | None = None
) -> CheckReport:
    """Everything about one set; without `pictures` none is opened, and leaks are by case alone."""
    mode = "clean" if kind.evaluation_only and splits == "case" else splits
    dataset = kind(BenchConfig.model_validate({"source": kind.name, "path": folder, "splits": mode}))
    rows = dataset.records
    report = CheckReport(
        name=kind.name,
        title=kind.title,
        root=dataset.root,
        licence=kind.licence,
        language=kind.language,
        grader=kind.grader,
        splits=mode,
        fingerprint=fingerprint(dataset),
        absent_parts=[f"{p.pattern} ({p.gives})" for p in kind.parts if p.needed and not p.found(dataset.root)],
        num_expected={split.value: number for split, number in kind.published.items()},
    )
    _count(report, rows)
    content = _contents(report, dataset, progress) if pictures else {}
    _split(report, dataset, content)
    return report


def _count(report: CheckReport, rows: Sequence[Row | BadRow]) -> None:
    good = [row for row in rows if isinstance(row, Row)]
    bad = [row for row in rows if isinstance(row, BadRow)]
    lost = [row for row in good if row.missing or not row.pictures]
    report.num_bad, report.num_without_picture = len(bad), len([row for row in lost if row.answer])
    report.num_without_answer = sum(not row.answer for row in good)
    names = (name for row in lost for name in (row.missing or (f"question {row.id} names none",)))
    report.examples["missing pictures"] = _some(names)
    report.examples["bad records"] = _some(f"{row.where}: {row.why}" for row in bad)
    for row in good:
        if row.answer:
            _add(report.num_published, row.split.value if row.split else "none")


def _contents(report: CheckReport, dataset: Dataset, progress: Progress | None) -> dict[str, str]:
    """Hash of the pixels by reference: equal files are decoded once, and one picture in two encodings is one picture."""
    references = {_key(reference): reference for row in dataset.usable for reference in row.pictures}
    by_bytes: dict[str, str] = {}
    content: dict[str, str] = {}
    damaged: list[str] = []
    for number, (key, reference) in enumerate(references.items(), 1):
        try:
            data = dataset.pictures.read(reference)
            digest = hashlib.sha256(data).hexdigest()
            if digest not in by_bytes:
                by_bytes[digest] = _pixel_hash(data, key)
            content[key] = by_bytes[digest]
        except UserError as error:
            damaged.append(str(error))
        if progress is not None:
            progress(number, len(references))
    report.num_pictures, report.num_damaged = len(set(content.values())), len(damaged)
    report.examples["damaged pictures"] = _some(damaged)
    return content


def _pixel_hash(data: bytes, name: str) -> str:
    """Of size and displayed RGB, so that a grey file and its RGB copy are one picture."""
    shown = decode(data, "", name).display()
    return hashlib.sha256(repr(shown.shape).encode() + shown.tobytes()).hexdigest()


def _split(report: CheckReport, dataset: Dataset, content: Mapping[str, str]) -> None:
    assignment = dataset.assignment
    for split, rows in assignment.rows.items():
        report.num_used[split.value] = len(rows)
        report.num_closed[split.value] = sum(row.closed or bool(row.choices) for row in rows)
        report.num_dropped[split.value] = assignment.num_dropped[split]
    find = partial(find_leaks, content=content)
    report.leaks_used = find([(row, split) for split, rows in assignment.rows.items() for row in rows])
    report.leaks_published = find([(row, row.split) for row in dataset.usable if row.split is not None])


def find_leaks(placed: Iterable[tuple[Row, Split]], content: Mapping[str, str]) -> Leaks:
    """Cases and pictures (by `content`: reference -> hash) that are in more than one split."""
    cases: dict[str, set[Split]] = defaultdict(set)
    pictures: dict[str, set[Split]] = defaultdict(set)
    for row, split in placed:
        cases[row.case].add(split)
        for reference in row.pictures:
            if (found := content.get(_key(reference))) is not None:
                pictures[found].add(split)
    leaking = [case for case, splits in cases.items() if len(splits) > 1]
    shared = [picture for picture, splits in pictures.items() if len(splits) > 1]
    return Leaks(num_cases=len(leaking), num_pictures=len(shared), examples=tuple(_some(leaking)))


def fingerprint(dataset: Dataset) -> str:
    """16 hex digits over the files of the set's parts: name and size, and the content of those up to 256 MiB."""
    digest = hashlib.sha256()
    paths = sorted({path for part in dataset.parts for path in part.found(dataset.root) if path.is_file()})
    for path in paths:
        size = path.stat().st_size
        digest.update(f"{path.relative_to(dataset.root).as_posix()}\0{size}\0".encode())
        if size <= _MAX_HASHED_BYTES:
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def _key(reference: Reference) -> str:
    return json.dumps(reference, sort_keys=True)


def _some(texts: Iterable[str]) -> list[str]:
    unique = dict.fromkeys(texts)
    return list(unique)[:_MAX_EXAMPLES]


def _add(counts: dict[str, int], key: str) -> None:
    counts[key] = counts.get(key, 0) + 1
