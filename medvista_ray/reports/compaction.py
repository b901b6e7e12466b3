"""Makes a trajectory log small: finished segments compressed, torn lines and pictures that no episode names removed.

Invariant: the episodes that a reader sees are the same before and after, and a kill at any instant changes nothing of
that. Called by `medvista-ray episodes compact`.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from medvista_ray.reports.files import write_atomic
from medvista_ray.reports.segments import finish_live, read_lines, read_objects, segments
from medvista_ray.reports.trajectory import IMAGES_NAME


@dataclass(frozen=True)
class Compaction:
    """What was done."""

    num_episodes: int
    """Lines that are kept, over all segments."""
    num_torn: int
    """Lines dropped."""
    num_pictures_removed: int
    bytes_before: int
    """Of lines and pictures."""
    bytes_after: int


def compact(folder: Path) -> Compaction:
    """Compact the log in `folder`. Raises RunFolderError if a run is still writing to it."""
    before = _size(folder)
    finish_live(folder)
    num_torn = 0
    for path in segments(folder):
        if path.suffix != ".gz":
            num_torn += _compress(path)
    for path in folder.glob("episodes-*.jsonl"):  # what a kill left beside its compressed form
        if path.with_name(f"{path.name}.gz").exists():
            path.unlink()
    records = list(read_objects(folder))
    wanted = {f"{key}.png" for record in records if record.get("has_pictures") for key in record.get("images", ())}
    orphans = [path for path in (folder / IMAGES_NAME).glob("*.png") if path.name not in wanted]
    for path in orphans:
        path.unlink()
    return Compaction(len(records), num_torn, len(orphans), before, _size(folder))


def _compress(path: Path) -> int:
    """Replace a finished segment by its compressed form. Returns the number of torn lines left out."""
    lines = list(read_lines(path))
    whole = b"".join(line.rstrip(b"\n") + b"\n" for line, value in lines if value is not None)
    write_atomic(path.with_name(f"{path.name}.gz"), gzip.compress(whole))
    path.unlink()
    return sum(value is None for _, value in lines)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
