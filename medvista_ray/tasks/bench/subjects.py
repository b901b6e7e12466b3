"""Who is in which split: the one table that keeps train, validation and test subjects apart.

Invariant: a subject is in exactly one split. Two pictures that may come from one patient or one slide count as one subject.
Called by the families and by the leak tests.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from medvista_ray.types import Split


@dataclass(frozen=True)
class Subject:
    """One patient, specimen or phantom."""

    id: str
    modality: str
    split: Split
    plates: tuple[str, ...]
    """Names under which the assets open its pictures (volumes or single plates)."""
    is_volume: bool = False
    technique: str = ""
    """What the wide families call the modality, where that says more."""

    @property
    def kind(self) -> str:
        """Modality in the words of the wide families."""
        return self.technique or self.modality


def _volume(name: str, modality: str, split: Split) -> Subject:
    return Subject(name, modality, split, (name,), is_volume=True)


def _plates(name: str, modality: str, split: Split, *plates: str, technique: str = "") -> Subject:
    return Subject(name, modality, split, plates or (name,), technique=technique)


HE, IHC, FLUORESCENCE = "histology", "immunohistochemistry", "fluorescence"


SUBJECTS: tuple[Subject, ...] = (
    _volume("ct-chest", "CT", Split.TRAIN),
    _volume("lung1", "CT", Split.TRAIN),
    _plates("ct-head", "CT", Split.TRAIN),
    _volume("brain2", "MRI", Split.TRAIN),
    _plates("mr-shoulder", "MRI", Split.TRAIN),
    _plates("xr-leg", "X-ray", Split.TRAIN),
    _plates("us-a", "ultrasound", Split.TRAIN),
    _plates("us-c", "ultrasound", Split.TRAIN),
    _plates("hgsc", "microscopy", Split.TRAIN, "hgsc-nest", "hgsc-stroma", technique=HE),
    _plates("ihc", "microscopy", Split.TRAIN, technique=IHC),
    _plates("nuclei3d", "microscopy", Split.TRAIN, technique=FLUORESCENCE),
    _volume("breast1", "MRI", Split.VALIDATION),
    _plates("us-d", "ultrasound", Split.VALIDATION),
    _volume("lung2", "CT", Split.TEST),
    _plates("ct-pancreas", "CT", Split.TEST),
    _volume("brain1", "MRI", Split.TEST),
    _plates("mr-liver", "MRI", Split.TEST),
    _plates("xr-chest", "X-ray", Split.TEST),
    _plates("us-b", "ultrasound", Split.TEST),
    _plates("nuclei2d", "microscopy", Split.TEST, technique=FLUORESCENCE),
    _plates("he-tile", "microscopy", Split.TEST, technique=HE),
)
WIDE_SUBJECTS: tuple[Subject, ...] = (
    *SUBJECTS,
    _plates("retina", "fundus photograph", Split.TRAIN),
    _plates("bone-scan", "bone scan", Split.TRAIN),
    _plates("us-e", "ultrasound", Split.VALIDATION),
    _plates("microaneurysms", "fundus photograph", Split.TEST),
)
"""Those of the wide families. The core families draw from `SUBJECTS` alone: one more there would change every question."""
BY_ID = {subject.id: subject for subject in WIDE_SUBJECTS}


def subjects(split: Split, modality: str | None = None, volume: bool | None = None) -> list[Subject]:
    """Subjects of a split, in table order."""
    return [s for s in SUBJECTS if s.split == split and modality in (None, s.modality) and volume in (None, s.is_volume)]


def wide_subjects(split: Split, *modalities: str, volume: bool | None = None) -> list[Subject]:
    """Subjects of a split for the wide families (of these modalities, or of all), in table order."""
    able = [s for s in WIDE_SUBJECTS if s.split == split and volume in (None, s.is_volume)]
    return [s for s in able if not modalities or s.modality in modalities]


def split_of_concept(identifier: str) -> Split:
    """Split of a knowledge concept, by a hash of its identifier: 80 % train, 10 % validation, 10 % test."""
    bucket = int(hashlib.sha256(identifier.encode()).hexdigest()[:8], 16) % 10
    return Split.TEST if bucket == 0 else Split.VALIDATION if bucket == 1 else Split.TRAIN
