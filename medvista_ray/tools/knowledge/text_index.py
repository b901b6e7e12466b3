"""A BM25 index over names and texts, kept on disk so that opening it takes a fraction of a second.

Each name of a document (its title, its id, each synonym or inclusion term) is indexed alone: a document scores as its
best name does, so that a term with many synonyms is not penalised for its length, plus a share of what its whole text
scores. A name that IS the query comes first. Invariant: an index on disk is complete (one rename) and belongs to
exactly the given fingerprint. Called by `search_text`.

BM25: Robertson and Zaragoza, 2009 (Lucene's variant, as bm25s computes it). Suffixes: D documents, N names.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
from numpy.typing import NDArray

_log = logging.getLogger(__name__)

FORMAT = 1
"""Raise when the files or the tokens change."""
_SYNONYM_WEIGHT = 0.95
"""A synonym that matches as well as another document's title comes after it."""
_TEXT_WEIGHT = 0.3
_NUM_CANDIDATES = 50
"""Documents whose names are compared with the query as a whole."""
_WORD = re.compile(r"[a-z0-9]+(?:[.:][a-z0-9]+)*")
_STOP_WORDS = frozenset(("a", "an", "and", "as", "at", "by", "for", "from", "in", "is", "of", "on", "or", "the", "to", "with"))
_KEPT_ENDINGS = ("ss", "us", "is")


@dataclass(frozen=True)
class Entry:
    """One document of the index."""

    id: str
    title: str
    synonyms: tuple[str, ...]
    text: str
    """Definition or paragraph, without the synonyms."""
    source: str


@dataclass(frozen=True)
class Hit:
    """A document that was found."""

    entry: Entry
    score: float


class TextIndex:
    """An opened index. Thread-safe: only read."""

    def __init__(self, entries: Sequence[Entry], names: Any, texts: Any) -> None:
        self.entries = entries
        self.names, self.texts = names, texts
        num_names = np.array([len(_names(entry)) for entry in entries])
        self._starts: NDArray[np.int64] = np.concatenate([[0], num_names.cumsum()[:-1]])
        self._weights = np.full(int(num_names.sum()), _SYNONYM_WEIGHT, np.float32)
        self._weights[self._starts] = 1.0

    def search(self, query: str, k: int) -> list[Hit]:
        """The best `k` documents, best first; fewer if fewer share a word with the query."""
        tokens = tokenize(query)
        scores_D = np.maximum.reduceat(_scores(self.names, tokens) * self._weights, self._starts)
        scores_D = scores_D + _TEXT_WEIGHT * _scores(self.texts, tokens)
        best = _top(scores_D, min(max(_NUM_CANDIDATES, k), len(scores_D)))
        hits = [Hit(self.entries[i], float(scores_D[i])) for i in best if scores_D[i] > 0]
        return sorted(hits, key=lambda hit: -_exactness(hit.entry, query, tokens))[:k]


def build_index(entries: Sequence[Entry]) -> TextIndex:
    """Index `entries` (at least one)."""
    names = [[tokenize(name) for name in _names(entry)] for entry in entries]
    texts = [
        [*(token for name in own for token in name), *tokenize(entry.text)] for entry, own in zip(entries, names, strict=True)
    ]
    return TextIndex(entries, _index([name for own in names for name in own]), _index(texts))


def open_index(folder: Path, fingerprint: str, load_entries: Callable[[], Sequence[Entry]]) -> TextIndex:
    """The index in `folder`/`fingerprint`, built from `load_entries` and kept there if it is not.

    A folder that cannot be written costs the next opener the time to build, nothing else.
    """
    home = folder / f"{fingerprint}-{FORMAT}"
    if not home.is_dir():
        index = build_index(load_entries())
        try:
            _save(index, home)
        except OSError as error:
            _log.warning("text index is not kept in %s: %s", home, error)
        return index
    with (home / "entries.json").open(encoding="utf-8") as file:
        entries = [Entry(i, title, tuple(synonyms), text, source) for i, title, synonyms, text, source in json.load(file)]
    return TextIndex(entries, _open(home / "names"), _open(home / "texts"))


def tokenize(text: str) -> list[str]:
    """Lower-case words without accents, stop words and plural s; codes such as j18.9 and hp:0001250 stay whole."""
    folded = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return [_stem(word) for word in _WORD.findall(folded.replace("'s", "")) if word not in _STOP_WORDS]


def _names(entry: Entry) -> tuple[str, ...]:
    return (entry.title, entry.id, *entry.synonyms)


def _exactness(entry: Entry, query: str, tokens: list[str]) -> int:
    """4 if the title or id is the query, 3 if a synonym is; 2 and 1 for the same words in any order; else 0."""
    plain, words = query.strip().casefold(), sorted(tokens)
    main, others = (entry.title, entry.id), entry.synonyms
    for names, level in ((main, 4), (others, 3)):
        if any(name.casefold() == plain for name in names):
            return level
    for names, level in ((main, 2), (others, 1)):
        if any(sorted(tokenize(name)) == words for name in names):
            return level
    return 0


def _stem(word: str) -> str:
    is_plural = len(word) > 3 and word.endswith("s") and not word.endswith(_KEPT_ENDINGS)
    return word[:-1] if is_plural else word


def _index(corpus: list[list[str]]) -> Any:
    index: Any = bm25s.BM25(method="lucene")
    index.index(corpus, show_progress=False)
    return index


def _scores(index: Any, tokens: list[str]) -> NDArray[np.float32]:
    known = [token for token in tokens if token in index.vocab_dict]
    if not known:
        return np.zeros(index.scores["num_docs"], np.float32)
    return index.get_scores(known)


def _top(scores: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Indices of the k largest, largest first, ties in document order."""
    threshold = np.partition(scores, -k)[-k]
    candidates = np.flatnonzero(scores >= threshold)
    return candidates[np.argsort(-scores[candidates], kind="stable")][:k]


def _save(index: TextIndex, home: Path) -> None:
    home.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=home.parent))
    try:
        index.names.save(str(partial / "names"), show_progress=False)
        index.texts.save(str(partial / "texts"), show_progress=False)
        with (partial / "entries.json").open("w", encoding="utf-8") as file:
            json.dump([astuple(entry) for entry in index.entries], file, ensure_ascii=False)
        os.rename(partial, home)
    except OSError:
        shutil.rmtree(partial, ignore_errors=True)
        if not home.is_dir():  # somebody else may have built it meanwhile
            raise


def _open(folder: Path) -> Any:
    return bm25s.BM25.load(str(folder), mmap=True, load_corpus=False)
