"""SLAKE's labels: boxes, mask values and knowledge triples, in their published formats.

detection.json: a list of {organ: [x, y, width, height]} in pixels. mask.txt: "70:Liver" a line, the grey value in mask.png.
KG: en_disease.csv, en_organ.csv, en_organ_rel.csv (Chinese without "en_") with "#" between entity, attribute and value.
Called by `slake`.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

from medvista_ray.errors import DatasetError
from medvista_ray.tasks.datasets.pictures import size_of
from medvista_ray.types import Box

Triple = tuple[str, str, str]
"""Entity, relation, value."""
Boxes = Mapping[str, tuple[Box, ...]]
"""By organ or finding."""
NO_VALUE = "_"
"""Stands for an empty place in a triple."""
_SIDE = re.compile(r"^(left|right) ")


def boxes_of(detection: bytes, picture: bytes, source: str) -> Boxes:
    """Boxes by organ, 0..1000 of the picture. Raises DatasetError."""
    width, height = size_of(picture, source)
    found: dict[str, list[Box]] = defaultdict(list)
    try:
        for item in json.loads(detection):
            for organ, (x, y, wide, high) in item.items():
                edges = (x / width, y / height, (x + wide) / width, (y + high) / height)
                x0, y0, x1, y1 = (min(max(round(1000 * edge), 0), 1000) for edge in edges)
                found[str(organ)].append((x0, y0, x1, y1))
    except (ValueError, TypeError, AttributeError) as error:
        raise DatasetError(f"{source!r} is no list of {{organ: [x, y, width, height]}}: {error}") from error
    return {organ: tuple(boxes) for organ, boxes in found.items()}


def named_boxes(boxes: Boxes, text: str) -> tuple[Box, ...]:
    """Boxes of the organs that the text names; of both sides if it names an organ ("lung") but no side of it."""
    folded = text.casefold()
    exact = [organ for organ in boxes if _names(folded, organ.casefold())]
    bare = {_SIDE.sub("", organ.casefold()) for organ in exact}
    either = [o for o in boxes if (b := _SIDE.sub("", o.casefold())) not in bare and _names(folded, b)]
    return tuple(box for organ in boxes if organ in {*exact, *either} for box in boxes[organ])


def _names(text: str, organ: str) -> bool:
    return re.search(rf"\b{re.escape(organ)}s?\b", text) is not None


def mask_names(path: Path) -> dict[int, str]:
    """Organ by grey value; empty if there is no such file. Raises DatasetError."""
    if not path.is_file():
        return {}
    try:
        pairs = [line.split(":", 1) for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        return {int(value): organ.strip() for value, organ in pairs}
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r}: expected lines such as 70:Liver ({error})") from error


def triples_of(root: Path, code: str) -> tuple[Triple, ...]:
    """The knowledge graph of a language ("en", "zh") from KG/ or KG.zip; empty if neither is there."""
    tables = {name: data for name, data in _tables(root).items() if name.startswith("en_") == (code == "en")}
    found: list[Triple] = []
    for name in sorted(tables):
        rows = csv.reader(io.StringIO(tables[name].decode("utf-8-sig", errors="replace")), delimiter="#", quoting=csv.QUOTE_NONE)
        next(rows, None)
        found += [(row[0].strip(), row[1].strip(), "#".join(row[2:]).strip()) for row in rows if len(row) >= 3]
    return tuple(found)


def _tables(root: Path) -> dict[str, bytes]:
    folder, archive = root / "KG", root / "KG.zip"
    if folder.is_dir():
        return {path.name: path.read_bytes() for path in sorted(folder.rglob("*.csv"))}
    if not archive.is_file():
        return {}
    try:
        with ZipFile(archive) as file:
            members = [name for name in file.namelist() if name.endswith(".csv") and "__MACOSX" not in name]
            return {PurePosixPath(name).name: file.read(name) for name in members}
    except (OSError, BadZipFile) as error:
        raise DatasetError(f"{str(archive)!r} cannot be read: {error}") from error
