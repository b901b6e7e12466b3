"""Open the pictures by subject: `subjects`, `open_volume`, `open_plate`.

Called by the bench. What subjects there are stands in `gallery`, the parsing of files in `readers`.
"""

from __future__ import annotations

from typing import Any

from medvista_ray.assets.gallery import GALLERY
from medvista_ray.assets.pictures import Kind, Plate, SubjectInfo, Volume
from medvista_ray.assets.store import asset_dir
from medvista_ray.errors import UnknownNameError, did_you_mean

__all__ = ["Kind", "Plate", "SubjectInfo", "Volume", "open_plate", "open_volume", "subjects"]


def subjects() -> tuple[SubjectInfo, ...]:
    """Every picture that can be opened, whether its asset is in the cache or not."""
    return tuple(entry.info for entry in GALLERY.values())


def open_volume(subject: str) -> Volume:
    """The scan of that name; the first call per cache converts it. Raises AssetError, ImageError, UnknownNameError."""
    return _open(subject, Kind.VOLUME)


def open_plate(subject: str) -> Plate:
    """The single picture of that name. Raises AssetError, ImageError, UnknownNameError."""
    return _open(subject, Kind.PLATE)


def _open(subject: str, kind: Kind) -> Any:
    entry = GALLERY.get(subject)
    if entry is None or entry.info.kind != kind:
        valid = [name for name, e in GALLERY.items() if e.info.kind == kind]
        raise UnknownNameError(f"{kind} {subject!r} is not known; {did_you_mean(subject, valid)}")
    return entry.open(entry.info, asset_dir(entry.info.asset))
