"""The text index: names before texts, codes whole, kept on disk."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from medvista_ray.assets.knowledge import Document
from medvista_ray.tools.knowledge.search_text import to_entry
from medvista_ray.tools.knowledge.text_index import Entry, build_index, open_index, tokenize

ENTRIES = [
    Entry("J18.9", "Pneumonia, unspecified organism", (), "", "ICD-10-CM"),
    Entry("J18.1", "Lobar pneumonia, unspecified organism", (), "", "ICD-10-CM"),
    Entry("HP:0002090", "Pneumonia", ("Lung infection",), "Inflammation of any part of the lung.", "HPO"),
    Entry("HP:0002202", "Pleural effusion", ("Fluid around lungs", "Water on the lung"), "Fluid in the cavity.", "HPO"),
    Entry("I31.3", "Pericardial effusion (noninflammatory)", ("Chylopericardium",), "", "ICD-10-CM"),
]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("Pneumonia", "HP:0002090"),
        ("pneumonia, unspecified organism", "J18.9"),
        ("organism unspecified pneumonia", "J18.9"),
        ("J18.1", "J18.1"),
        ("hp:0002202", "HP:0002202"),
        ("lung infections", "HP:0002090"),
        ("Chylopericardium", "I31.3"),
        ("inflammation", "HP:0002090"),
        ("pleural effusions", "HP:0002202"),
    ],
)
def test_the_document_meant_comes_first(query: str, expected: str) -> None:
    assert build_index(ENTRIES).search(query, 3)[0].entry.id == expected


def test_words_that_no_document_has_find_nothing() -> None:
    index = build_index(ENTRIES)
    assert index.search("zebra", 3) == []
    assert index.search("of the", 3) == []
    assert len(index.search("effusion", 10)) == 2


def test_an_index_that_is_opened_again_answers_as_the_one_that_was_built(tmp_path: Path) -> None:
    built = open_index(tmp_path, "x", lambda: ENTRIES)
    opened = open_index(tmp_path, "x", lambda: pytest.fail("built twice"))
    for query in ("pneumonia", "fluid around the lungs", "J18.9"):
        assert opened.search(query, 3) == built.search(query, 3)
    assert [path.name for path in tmp_path.iterdir()] == ["x-1"]


def test_an_index_that_cannot_be_kept_still_answers(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    assert open_index(blocker / "below", "x", lambda: ENTRIES).search("pneumonia", 1)


def test_words_are_folded_and_codes_stay_whole() -> None:
    assert tokenize("Ménière's diseases of the inner ears; J18.9, HP:0001250") == [
        "meniere", "disease", "inner", "ear", "j18.9", "hp:0001250",
    ]  # fmt: skip
    assert tokenize("virus stenosis abscess") == ["virus", "stenosis", "abscess"]


def test_other_names_are_taken_out_of_the_text() -> None:
    term = Document("HP:1", "Seizure", "A seizure is an event. Also: Epileptic fit; Fits.", "HPO")
    assert to_entry(term) == Entry("HP:1", "Seizure", ("Epileptic fit", "Fits"), "A seizure is an event.", "HPO")
    code = Document("A00", "Cholera", "Includes: Classical cholera; Cholera eltor.", "ICD-10-CM")
    assert to_entry(code).synonyms == ("Classical cholera", "Cholera eltor")
    paragraph = Document("g/a#1", "Guide: Scope", "Includes: a; b.", "guideline")
    assert to_entry(paragraph).text == "Includes: a; b."


@pytest.mark.assets
def test_published_terms_are_found_by_title_code_and_synonym() -> None:
    from medvista_ray.tools.base import ToolContext
    from medvista_ray.tools.knowledge.search_text import SearchText

    SearchText().setup()  # builds the index if this cache has none
    tool = SearchText()
    start = time.perf_counter()
    tool.setup()
    assert time.perf_counter() - start < 5.0
    tool.probe()
    some = [entry for entry in tool.index.entries if entry.source != "guideline"][::1000]
    by_title = [tool.index.search(entry.title, 1)[0].entry.title.casefold() == entry.title.casefold() for entry in some]
    by_code = [tool.index.search(entry.id, 1)[0].entry.id == entry.id for entry in some]
    named = [(entry, entry.synonyms[-1]) for entry in tool.index.entries[::500] if entry.synonyms]
    by_name = [entry.id in [hit.entry.id for hit in tool.index.search(name, 3)] for entry, name in named]
    assert sum(by_title) >= 0.98 * len(some)
    assert sum(by_code) >= 0.98 * len(some)
    assert sum(by_name) >= 0.95 * len(named)
    text = tool.run(SearchText.Args(query="pneumonia unspecified organism", k=2), ToolContext({}, {})).text
    assert "J18.9 Pneumonia, unspecified organism" in text
    assert text.startswith("1. J18")
