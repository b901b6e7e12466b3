"""`lookup_concept`: what an ontology says of one concept, as triples (HPO and ICD-10-CM; or a user's OBO file).

Invariant: only published knowledge, nothing of any task. Backend "packaged" is HPO and ICD-10-CM; "obo" is the OBO
file that its weights name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import StringConstraints

from medvista_ray.registry import Registry
from medvista_ray.tools.backends import load_backend
from medvista_ray.tools.base import Family, Tool, ToolArgs, ToolContext
from medvista_ray.types import ToolResult

if TYPE_CHECKING:
    from medvista_ray.tools.knowledge.concepts import Concept, Ontology

ONTOLOGIES = Registry(
    "ontology",
    {
        "packaged": "medvista_ray.tools.knowledge.concepts:packaged",
        "obo": "medvista_ray.tools.knowledge.concepts:from_obo",
    },
)
Relation = Literal["definition", "synonyms", "parents", "children"]
_RELATIONS: tuple[Relation, ...] = ("definition", "synonyms", "parents", "children")
MAX_TOLD = 8
"""Values of one relation that the words tell; `data` has all."""
_MAX_CHARS = 300


class LookupConceptArgs(ToolArgs):
    """Arguments of lookup_concept."""

    entity: Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1, max_length=200)]
    """Identifier, name or synonym."""
    relation: Relation | None = None
    """Only this; by default all that there is."""


class LookupConcept(Tool):
    """Triples of one concept."""

    name: ClassVar[str] = "lookup_concept"
    family: ClassVar[Family] = "knowledge"
    description: ClassVar[str] = "definition, synonyms and parents of a term or code."
    Args = LookupConceptArgs

    ontology: Ontology

    def setup(self) -> None:
        """Parse the ontologies (a few seconds)."""
        self.ontology = load_backend(ONTOLOGIES, self.name, self.options, "packaged")

    def run(self, args: LookupConceptArgs, context: ToolContext) -> ToolResult:
        """What is known of the concept. Raises ToolArgumentError if there is no such concept, or more than one."""
        del context
        concept = self.ontology.find(args.entity)
        relations = (args.relation,) if args.relation else _RELATIONS
        known = {relation: self._values(concept, relation) for relation in relations}
        parts = [f"{relation}: {_listed(values)}" for relation, values in known.items() if values or args.relation]
        triples = [[concept.id, relation, value] for relation, values in known.items() for value in values]
        data = {"id": concept.id, "name": concept.name, "source": concept.source, "triples": triples}
        return ToolResult(text=". ".join([f"{concept.id} {concept.name}", *parts]) + ".", data=data)

    def probe(self) -> None:
        """Find the first concept by its identifier."""
        first = next(iter(self.ontology.concepts.values()))
        if self.ontology.find(first.id) is not first:
            raise RuntimeError("lookup_concept does not find its own first concept")

    def _values(self, concept: Concept, relation: Relation) -> list[str]:
        if relation == "definition":
            return [concept.definition] if concept.definition else []
        if relation == "synonyms":
            return list(concept.synonyms)
        related = self.ontology.parents(concept) if relation == "parents" else self.ontology.children(concept)
        return [f"{other.id} {other.name}" for other in related]


def _listed(values: list[str]) -> str:
    """The values in words, bounded."""
    text = "; ".join(value.rstrip(".")[:_MAX_CHARS] for value in values[:MAX_TOLD])
    more = f"; {len(values) - MAX_TOLD} more" if len(values) > MAX_TOLD else ""
    return (text or "none") + more
