"""The bank of reference cases: pictures of TRAIN subjects with what is publicly said about them, and their features.

Invariant: every case is of a subject of the train split; a bank (also one that somebody put on the disk) that holds
another is refused. A case carries its kind, its subject's one-line description and where the picture is, never a
question or an answer. Called by `similar_cases` (looks cases up) and `classify` (learns the kinds from them).

N: cases, D: features.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvista_ray.errors import InvariantError
from medvista_ray.types import MedImage, Split

FORMAT = 1
"""Raise when the cases or the features change."""
NUM_VIEWS = 24
"""Pictures of each subject; every second one is lightened or darkened, as screens and presets differ."""
_LOG_GAMMA = 0.5
SEED = 20


@dataclass(frozen=True)
class Case:
    """One reference picture."""

    id: str
    subject: str
    modality: str
    caption: str
    """What the source says about the subject."""
    recipe: Mapping[str, Any]
    """From which the bench renders the picture; "gamma" and "project" (a computed radiograph) are this module's own."""


@dataclass(frozen=True)
class CaseBank:
    """Cases and their features. Raises InvariantError if one is not of a train subject."""

    cases: tuple[Case, ...]
    features_ND: NDArray[np.float32]

    def __post_init__(self) -> None:
        from medvista_ray.tasks.bench.subjects import BY_ID

        for case in self.cases:
            if case.subject not in BY_ID or BY_ID[case.subject].split != Split.TRAIN:
                raise InvariantError(f"case {case.id!r} is of {case.subject!r}, which is not a train subject")
        if len(self.cases) != len(self.features_ND):
            raise InvariantError(f"{len(self.cases)} cases have {len(self.features_ND)} rows of features")


def subject_of(source: str) -> str | None:
    """The subject whose picture `source` names, or None for a picture from elsewhere."""
    from medvista_ray.tasks.bench.subjects import SUBJECTS

    return next((subject.id for subject in SUBJECTS if source in subject.plates), None)


def open_bank(encoder: str, encode: Callable[[MedImage], NDArray[np.float32]]) -> CaseBank:
    """The bank of an encoder, built once per cache folder (under a minute) and then read.

    Raises AssetError if a picture's asset is absent.
    """
    from medvista_ray.assets import cache_root

    planned = tuple(planned_cases())
    identity = json.dumps([FORMAT, encoder, [asdict(case) for case in planned]])
    path = cache_root() / "indexes" / f"cases-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.npz"
    return _read(path, planned) or _build(path, planned, encode)


def planned_cases() -> Iterator[Case]:
    """What the bank holds: views of each train subject, and radiographs computed from the train CT."""
    from medvista_ray.assets.volumes import subjects as shown
    from medvista_ray.tasks.bench.drawing import draw_view
    from medvista_ray.tasks.bench.subjects import subjects

    about = {info.id: info.about for info in shown()}
    for subject in subjects(Split.TRAIN):
        rng = np.random.default_rng([SEED, *subject.id.encode()])
        for number in range(NUM_VIEWS):
            recipe = draw_view(rng, subject)
            if number % 2:
                recipe["gamma"] = float(np.exp(rng.uniform(-_LOG_GAMMA, _LOG_GAMMA)))
            caption = f"{subject.modality}: {about[recipe['plate']]}"
            yield Case(f"{subject.id}/{number}", subject.id, subject.modality, caption, recipe)
    for number in range(NUM_VIEWS):
        words = "X-ray: chest, computed from a CT"
        yield Case(f"ct-chest/x{number}", "ct-chest", "X-ray", words, {"plate": "ct-chest", "project": number})


def render_case(case: Case) -> MedImage:
    """Its picture."""
    from medvista_ray.tasks.bench.pictures import render

    image = project(int(case.recipe["project"])) if "project" in case.recipe else render(case.recipe)
    if "gamma" not in case.recipe:
        return image
    lit = (255.0 * (image.display() / 255.0) ** case.recipe["gamma"]).astype(np.uint8)
    return MedImage(pixels=lit, modality=image.modality, spacing_mm=image.spacing_mm, source=image.source)


def project(number: int) -> MedImage:
    """A radiograph of the train CT: attenuation summed along the body's front-back or left-right axis (Beer-Lambert).

    Views differ in direction, crop and contrast by `number`.
    """
    from PIL import Image

    from medvista_ray.tasks.bench.pictures import volume

    scan, rng = volume("ct-chest"), np.random.default_rng([SEED, number])
    attenuation = np.clip(np.asarray(scan.values[:, ::2, ::2], np.float32) + 1000.0, 0.0, 2500.0)
    column = attenuation.sum(axis=1 if number % 3 else 2)[::-1]
    height = round(column.shape[0] * scan.spacing_mm[0] / (2 * scan.spacing_mm[1]))
    film = Image.fromarray(1.0 - np.exp(-column / column.max() * rng.uniform(0.8, 2.5)))
    pixels = np.asarray(film.resize((column.shape[1] * 2, height * 2), Image.Resampling.BICUBIC))
    margin = [int(side * rng.uniform(0.0, 0.2)) for side in pixels.shape for _ in range(2)]
    crop = pixels[margin[0] : pixels.shape[0] - margin[1], margin[2] : pixels.shape[1] - margin[3]]
    window = (float(np.percentile(crop, 2)), float(np.percentile(crop, 99.5)))
    return MedImage(pixels=np.ascontiguousarray(crop), modality="X-ray", window=window, source="ct-chest")


def _read(path: Path, planned: tuple[Case, ...]) -> CaseBank | None:
    """The kept bank, or None if there is none that can be read."""
    try:
        with np.load(path, allow_pickle=False) as kept:
            features_ND = kept["features"]
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return CaseBank(planned, features_ND) if len(features_ND) == len(planned) else None


def _build(path: Path, planned: tuple[Case, ...], encode: Callable[[MedImage], NDArray[np.float32]]) -> CaseBank:
    from medvista_ray.assets.store import disk_errors, is_read_only, write_atomically
    from medvista_ray.errors import AssetError

    bank = CaseBank(planned, np.stack([encode(render_case(case)) for case in planned]).astype(np.float32))
    try:
        with disk_errors(path.name, bank.features_ND.nbytes):
            write_atomically(path, lambda file: np.savez(file, features=bank.features_ND))
    except AssetError as error:
        if not is_read_only(error):  # else: built again next time
            raise
    return bank
