"""What is the term behind a code, or behind another name of it? One search, one name to copy.

Terms are split by a hash of their code. A picture is shown, as in a reading room, but does not tell the term.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

from numpy.random import Generator

from medvista_ray.assets.knowledge import Document, documents
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick
from medvista_ray.tasks.bench.families.concept_code import terms
from medvista_ray.tasks.bench.subjects import Subject, wide_subjects
from medvista_ray.types import AnswerKind, Split

if TYPE_CHECKING:
    from medvista_ray.tasks.bench.expert import BenchExpert

CODE_QUESTIONS = ('Which term has the ICD-10-CM code "{key}"?', 'Name the diagnosis with the ICD-10-CM code "{key}".')
NAME_QUESTIONS = ('What is the HPO term that is also called "{key}"?', 'Give the HPO term for "{key}".')


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates codes and other names."""
    by_code = index % 2 == 0
    document: Document = pick(rng, terms(split, "ICD-10-CM" if by_code else "HPO"))
    keys = (document.id,) if by_code else _other_names(document)
    if not keys:
        return None
    subject: Subject = pick(rng, wide_subjects(split))
    return Draft(
        subject=f"concept:{document.id}",
        modality="text",
        question=pick(rng, CODE_QUESTIONS if by_code else NAME_QUESTIONS).format(key=pick(rng, keys)),
        answer=document.title,
        kind=AnswerKind.TEXT,
        chance=0.0,
        recipe=draw_view(rng, subject),
        plan=("search_text",),
    )


def _names(document: Document) -> list[str]:
    found = re.search(r"(?:^|\s)Also: (.*)\.$", document.text, re.DOTALL)
    return found[1].split("; ") if found else []


@lru_cache(maxsize=1)
def _num_uses() -> Counter[str]:
    """How many documents each name belongs to."""
    return Counter(name.lower() for document in documents() for name in {document.title, *_names(document)})


def _other_names(document: Document) -> tuple[str, ...]:
    """Synonyms in plain words that no other document has and that do not contain the term or its words in another order."""
    title = set(document.title.lower().split())
    names = (name for name in _names(document) if re.fullmatch(r"[A-Za-z][A-Za-z \-]+", name))
    return tuple(name for name in names if _num_uses()[name.lower()] == 1 and not title <= set(name.lower().split()))


def play(hand: BenchExpert) -> Iterator[str]:
    """Search, and copy the first hit's name."""
    quoted = re.search(r'"(.+)"', hand.task.question)
    yield hand.call("search_text", query=quoted[1] if quoted else hand.task.question)
    first = re.search(r"1\. \S+ (.+?)(?:; 2\. |$)", hand.reply)
    yield hand.answer(first[1] if first else "not found")
