"""Pictures of a data set where they lie: in folders, zip archives, parquet cells or TSV cells.

Invariant: a reference is plain JSON, relative to the set's folder, so that a task's recipe opens the same picture on every
node that sees the folder. Read-only; archives and the last parquet row groups stay open. Called by `Dataset`.
"""

from __future__ import annotations

import base64
import binascii
import io
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from PIL import Image

from medvista_ray.errors import DatasetError, ImageError
from medvista_ray.tasks.datasets.tables import cell_bytes, parquet_cell, tsv_fields
from medvista_ray.types import MedImage

Reference = Mapping[str, Any]
"""{"file"} | {"zip", "member"} | {"parquet", "column", "row", "item"} | {"tsv", "offset", "length", "column"}."""

GREY_MODES = frozenset({"1", "L", "I", "I;16", "I;16L", "I;16B", "F"})
MAX_PIXELS = 200_000_000
"""Larger pictures are refused: no set has one, a damaged header may claim one."""


class Pictures:
    """The pictures below `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._archive = lru_cache(maxsize=None)(self._open_archive)

    def find(self, name: str, folders: Sequence[str] = ("",), archives: Sequence[str] = ()) -> Reference | None:
        """Where the file `name` lies: in one of the folders, or in one of the archives below any of their own folders."""
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            return None  # a table never leads out of its own folder
        for folder in folders:
            path = f"{folder}/{name}" if folder else name
            if (self.root / path).is_file():
                return {"file": path}
        for archive in archives:
            if (self.root / archive).is_file() and (member := self._archive(archive).member(name)) is not None:
                return {"zip": archive, "member": member}
        return None

    def read(self, reference: Reference) -> bytes:
        """The encoded file. Raises DatasetError if it is gone or damaged."""
        try:
            if "file" in reference:
                return (self.root / reference["file"]).read_bytes()
            if "zip" in reference:
                return self._archive(reference["zip"]).read(reference["member"])
            if "parquet" in reference:
                return cell_bytes(parquet_cell(self.root / reference["parquet"], **_cell(reference)))
            return self._read_tsv(reference)
        except (OSError, KeyError, BadZipFile, IndexError, binascii.Error) as error:
            raise DatasetError(f"picture {dict(reference)} in {str(self.root)!r} cannot be read: {error}") from error

    def _read_tsv(self, reference: Reference) -> bytes:
        with (self.root / reference["tsv"]).open("rb") as file:
            file.seek(reference["offset"])
            record = file.read(reference["length"]).decode()
        return base64.b64decode(tsv_fields(record)[reference["column"]], validate=False)

    def _open_archive(self, name: str) -> _Archive:
        return _Archive(self.root / name)


def _cell(reference: Reference) -> dict[str, Any]:
    return {key: reference.get(key) for key in ("column", "row", "item")}


class _Archive:
    """A zip archive with its members by file name."""

    def __init__(self, path: Path) -> None:
        try:
            self._zip = ZipFile(path)
        except (OSError, BadZipFile) as error:
            raise DatasetError(f"archive {str(path)!r} cannot be opened: {error}") from error

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = defaultdict(list)
        for member in self._zip.namelist():
            found[PurePosixPath(member).name].append(member)
        return found

    def member(self, name: str) -> str | None:
        """The member that is called `name`, or lies in the archive's own folder under that name."""
        candidates = self._by_name.get(PurePosixPath(name).name, [])
        return next((member for member in candidates if member == name or member.endswith(f"/{name}")), None)

    def read(self, member: str) -> bytes:
        """Its bytes, unpacked."""
        return self._zip.read(member)


def decode(data: bytes, modality: str, source: str) -> MedImage:
    """An encoded file as a picture: grey [H, W] with its native values, anything else [H, W, 3] uint8.

    Raises ImageError.
    """
    image = _open(data, source)
    try:
        if image.mode in GREY_MODES:
            pixels = np.asarray(image).astype(np.uint8) * 255 if image.mode == "1" else np.asarray(image)
            window = (0.0, 255.0) if pixels.dtype == np.uint8 else None
            return MedImage(pixels, modality, window=window, source=source)
        return MedImage(np.asarray(image.convert("RGB")), modality, source=source)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"picture {source!r} is damaged: {error}") from error


def size_of(data: bytes, source: str) -> tuple[int, int]:
    """Width and height in pixels, from the header. Raises ImageError."""
    return _open(data, source).size


def _open(data: bytes, source: str) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(io.BytesIO(data))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ImageError(f"picture {source!r} cannot be read: {error}") from error
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"picture {source!r}: {image.width} x {image.height} pixels, at most {MAX_PIXELS} are read")
    return image
