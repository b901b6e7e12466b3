"""What is the code of a term? One search, one code to copy. Terms are split by a hash of their code.

A picture is shown, as in a reading room, but does not tell the code.
"""

from __future__ import annotations

import re
from functools import lru_cache

from numpy.random import Generator

from medvista_ray.assets.knowledge import Document, documents
from medvista_ray.tasks.bench.draft import Draft
from medvista_ray.tasks.bench.drawing import draw_view, pick
from medvista_ray.tasks.bench.subjects import Subject, split_of_concept, subjects
from medvista_ray.types import AnswerKind, Split

MAX_WORDS = 4
SYSTEMS = {"ICD-10-CM": "ICD-10-CM code", "HPO": "HPO identifier"}
QUESTIONS = ('What is the {system} of "{term}"?', 'Look up the {system} for "{term}".')


@lru_cache(maxsize=4)
def terms(split: Split, system: str) -> list[Document]:
    """Short, plain terms of one system whose code falls in the split; ambiguous titles are left out."""
    all_of_system = [d for d in documents() if d.source == system]
    counts: dict[str, int] = {}
    for document in all_of_system:
        counts[document.title.lower()] = counts.get(document.title.lower(), 0) + 1
    return [d for d in all_of_system if counts[d.title.lower()] == 1 and _is_plain(d.title) and split_of_concept(d.id) == split]


def _is_plain(title: str) -> bool:
    return bool(re.fullmatch(r"[A-Za-z][A-Za-z \-]+", title)) and 2 <= len(title.split()) <= MAX_WORDS


def make(rng: Generator, split: Split, index: int) -> Draft | None:
    """One question; `index` alternates the coding systems."""
    system = list(SYSTEMS)[index % len(SYSTEMS)]
    if not subjects(split):
        return None
    document: Document = pick(rng, terms(split, system))
    subject: Subject = pick(rng, subjects(split))
    return Draft(
        subject=f"concept:{document.id}",
        modality="text",
        question=pick(rng, QUESTIONS).format(system=SYSTEMS[system], term=document.title),
        answer=document.id,
        kind=AnswerKind.TEXT,
        chance=0.0,
        recipe=draw_view(rng, subject),
        plan=("search_text",),
    )
