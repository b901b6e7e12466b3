"""The question families of MedVista-Bench: one family, one file.

A family is a function `make(rng, split, index) -> Draft | None`: a question with its gold answer, gold region and picture
recipe, or None if this draw gave no valid question (the caller draws again). `index` cycles the answers, so that each
family's answers are balanced. A family of the wide set also has `play(hand)`, the scripted expert's turns (see
`expert`). Called by the bench source.
"""

from medvista_ray.registry import Registry

_CORE = {
    "lesion_size": 0.20,
    "box_measure": 0.15,
    "denser_region": 0.15,
    "side_marker": 0.20,
    "nucleus_present": 0.10,
    "concept_code": 0.10,
    "modality": 0.10,
}
_WIDE = {
    "turned_view": 0.10,
    "concept_name": 0.10,
    "denser_across": 0.15,
    "matching_crop": 0.15,
    "fine_print": 0.10,
    "wider_across": 0.15,
    "lesion_longer": 0.15,
    "lost_marker": 0.15,
    "scan_mean": 0.15,
    "scan_length": 0.15,
    "scan_denser_slice": 0.15,
    "scan_lesion_longer": 0.15,
    "more_nuclei": 0.10,
}
SHARES = _CORE | _WIDE
"""Weight of each family; its share of a split is this over the sum of those in use."""
SETS = {"core": tuple(_CORE), "wide": tuple(name for name in SHARES if name != "lesion_size")}
"""Named sets of families. The wide set has `lesion_longer` in the place of `lesion_size`."""

FAMILIES = Registry("familie", {name: f"medvista_ray.tasks.bench.families.{name}:make" for name in SHARES})
"""Family name -> its `make` function."""
PLAYS = Registry("play", {name: f"medvista_ray.tasks.bench.families.{name}:play" for name in _WIDE})
"""Name of a wide family -> its scripted expert."""
