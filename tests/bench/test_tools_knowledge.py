"""lookup_concept and similar_cases: published knowledge and train subjects, and nothing else, however one asks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.errors import AssetError, ConfigError, InvariantError, ToolArgumentError
from medvista_ray.tools.base import BackendChoice, ToolContext, ToolOptions
from medvista_ray.tools.knowledge import case_bank
from medvista_ray.tools.knowledge.case_bank import Case, CaseBank
from medvista_ray.tools.knowledge.lookup_concept import LookupConcept
from medvista_ray.tools.knowledge.similar_cases import SimilarCases
from medvista_ray.types import MedImage, Split

OBO = """format-version: 1.2

[Term]
id: X:1
name: Effusion
def: "Fluid where \\"none\\" should be." [me]

[Term]
id: X:2
name: Pleural effusion
synonym: "Water on the lung" EXACT []
synonym: "Fluid" BROAD []
is_a: X:1 ! Effusion

[Term]
id: X:3
name: Pericardial effusion
synonym: "Fluid" BROAD []
is_a: X:1 ! Effusion

[Term]
id: X:4
name: Old term
is_obsolete: true
"""


@pytest.fixture
def concepts(tmp_path: Path) -> LookupConcept:
    path = tmp_path / "own.obo"
    path.write_text(OBO)
    tool = LookupConcept(ToolOptions(backends={"lookup_concept": BackendChoice(name="obo", weights=path)}))
    tool.setup()
    tool.probe()
    return tool


def look(tool: LookupConcept, entity: str, relation: str | None = None) -> str:
    return tool.run(tool.Args.model_validate({"entity": entity, "relation": relation}), ToolContext({}, {})).text


@pytest.mark.parametrize("entity", ["x:2", "pleural  effusion", "water on the lung"])
def test_a_concept_is_found_by_id_name_and_synonym(concepts: LookupConcept, entity: str) -> None:
    assert look(concepts, entity) == "X:2 Pleural effusion. synonyms: Water on the lung; Fluid. parents: X:1 Effusion."


def test_children_and_definitions_are_told(concepts: LookupConcept) -> None:
    assert look(concepts, "X:1", "children") == "X:1 Effusion. children: X:2 Pleural effusion; X:3 Pericardial effusion."
    assert 'definition: Fluid where "none" should be.' in look(concepts, "effusion")
    assert look(concepts, "X:1", "parents") == "X:1 Effusion. parents: none."


@pytest.mark.parametrize(
    ("entity", "words"),
    [
        ("fluid", "names 2 concepts, give an id: X:2 Pleural effusion; X:3"),
        ("plural effusion", "nearest names: pleural effusion"),
        ("old term", "no concept is called"),
        ("zebra", "search_text finds"),
    ],
)
def test_what_names_no_single_concept_is_refused_in_words(concepts: LookupConcept, entity: str, words: str) -> None:
    with pytest.raises(ToolArgumentError, match=words):
        look(concepts, entity)


def test_an_ontology_that_is_none_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "x.obo").write_text("hello")
    for weights, error in ((tmp_path / "x.obo", AssetError), (tmp_path / "y.obo", AssetError), (None, ConfigError)):
        with pytest.raises(error, match="obo"):
            LookupConcept(ToolOptions(backends={"lookup_concept": BackendChoice(name="obo", weights=weights)})).setup()


def case(subject: str, number: int = 0) -> Case:
    return Case(f"{subject}/{number}", subject, "CT", f"CT: {subject}", {})


@pytest.mark.parametrize("subject", ["lung2", "breast1", "nuclei2d", "concept:X"])
def test_a_bank_with_anyone_but_train_subjects_is_refused(subject: str) -> None:
    with pytest.raises(InvariantError, match="which is not a train subject"):
        CaseBank((case("lung1"), case(subject)), np.zeros((2, 3), np.float32))


def test_every_planned_case_is_of_the_train_split_and_tells_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    from medvista_ray.tasks.bench import drawing
    from medvista_ray.tasks.bench.subjects import BY_ID

    monkeypatch.setattr(drawing, "draw_view", lambda _, subject: {"plate": subject.plates[0]})  # no pictures are opened
    planned = list(case_bank.planned_cases())
    assert {BY_ID[c.subject].split for c in planned} == {Split.TRAIN}
    assert {c.modality for c in planned} == {"CT", "MRI", "X-ray", "ultrasound", "microscopy"}


@pytest.fixture(scope="module")
def similar() -> SimilarCases:
    tool = SimilarCases()
    tool.setup()
    return tool


def cases_of(tool: SimilarCases, image: MedImage) -> list[str]:
    result = tool.run(tool.Args.model_validate({"k": 5}), ToolContext({0: image}, {}))
    return [found["case_id"].split("/")[0] for found in result.data["cases"]]


@pytest.mark.assets
@pytest.mark.parametrize("subject", ["ct-pancreas", "mr-liver", "xr-chest", "us-b", "nuclei2d", "he-tile", "us-d"])
def test_a_test_picture_finds_neither_itself_nor_another_test_subject(similar: SimilarCases, subject: str) -> None:
    from medvista_ray.assets.volumes import open_plate
    from medvista_ray.tasks.bench.subjects import BY_ID

    found = open_plate(subject)
    for source in (subject, "", "lung1"):  # also one that hides or lies about where it is from
        named = cases_of(similar, MedImage(pixels=found.pixels, modality="CT", source=source))
        assert named
        assert {BY_ID[name].split for name in named} == {Split.TRAIN}


@pytest.mark.assets
def test_a_train_picture_does_not_find_its_own_subject(similar: SimilarCases) -> None:
    own = next(c for c in similar.bank.cases if c.subject == "hgsc")
    image = case_bank.render_case(own)
    assert "hgsc" not in cases_of(similar, image)
    assert cases_of(similar, dataclasses.replace(image, source=""))[0] == "hgsc"
    similar.probe()
