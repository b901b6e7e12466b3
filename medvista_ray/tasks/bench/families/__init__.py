"""The question families of MedVista-Bench: one family, one file.

A family is a function `make(rng, split, index) -> Draft | None`: a question with its gold answer, gold region and picture
recipe, or None if this draw gave no valid question (the caller draws again). `index` cycles the answers, so that each
family's answers are balanced. Called by the bench source.
"""

from medvista_ray.registry import Registry

FAMILIES = Registry(
    "familie",
    {
        name: f"medvista_ray.tasks.bench.families.{name}:make"
        for name in (
            "lesion_size",
            "box_measure",
            "denser_region",
            "side_marker",
            "nucleus_present",
            "concept_code",
            "modality",
        )
    },
)
"""Family name -> its `make` function."""

SHARES = {
    "lesion_size": 0.20,
    "box_measure": 0.15,
    "denser_region": 0.15,
    "side_marker": 0.20,
    "nucleus_present": 0.10,
    "concept_code": 0.10,
    "modality": 0.10,
}
"""Share of each built-in family in a split."""
