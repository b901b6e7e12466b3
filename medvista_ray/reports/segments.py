"""The files of a trajectory log: one live segment that is appended to, and finished segments, compressed.

Owns the names, the order and the locks. Invariants: a segment exists whole, compressed or plain, at every instant (the
compressed one counts as soon as it has its name), so that a kill while compacting loses and doubles nothing; who writes
holds a shared lock on the live segment, who compacts an exclusive one. Called by `trajectory` and its compaction.
"""

from __future__ import annotations

import fcntl
import gzip
import json
import logging
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from medvista_ray.errors import RunFolderError
from medvista_ray.reports.files import end_torn_line

logger = logging.getLogger(__name__)

LIVE_NAME = "episodes.jsonl"
_FINISHED = re.compile(r"episodes-(\d{4,})\.jsonl(\.gz)?")


def open_live(folder: Path) -> FileIO:
    """The live segment for appending, unbuffered and locked against compaction until it is closed."""
    while True:
        end_torn_line(folder / LIVE_NAME)
        file = FileIO(folder / LIVE_NAME, "ab")
        with suppress(OSError):  # a file system without locks (some network ones): a run must not end for that
            fcntl.flock(file, fcntl.LOCK_SH)
        # A compaction may have moved the segment away between opening and locking.
        if (folder / LIVE_NAME).exists() and os.path.samestat(os.fstat(file.fileno()), (folder / LIVE_NAME).stat()):
            return file
        file.close()


def segments(folder: Path) -> list[Path]:
    """The segments to read, oldest first; of one that is there plain and compressed, the compressed."""
    finished: dict[int, Path] = {}
    for path in sorted(folder.glob("episodes-*.jsonl*")):  # ".jsonl" sorts before ".jsonl.gz"
        if match := _FINISHED.fullmatch(path.name):
            finished[int(match[1])] = path
    live = folder / LIVE_NAME
    return [*(finished[number] for number in sorted(finished)), *([live] if live.exists() else [])]


def finish_live(folder: Path) -> Path | None:
    """Close the live segment: it becomes the newest finished one, still plain. None if there is nothing in it.

    Raises RunFolderError if a run is still writing.
    """
    live = folder / LIVE_NAME
    if not live.exists() or live.stat().st_size == 0:
        return None
    with live.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"{str(live)!r}: a run is writing to it; compact it when the run has ended") from error
        numbers = [int(match[1]) for path in folder.iterdir() if (match := _FINISHED.fullmatch(path.name))]
        return live.rename(folder / f"episodes-{max(numbers, default=0) + 1:04d}.jsonl")


def read_lines(path: Path) -> Iterator[tuple[bytes, dict[str, Any] | None]]:
    """Each line of a segment and the object in it; None for a torn line (a kill) and for anything else."""
    with cast("BinaryIO", gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")) as file:
        for line in file:
            if line.strip():
                yield line, _object(line)


def read_objects(folder: Path) -> Iterator[dict[str, Any]]:
    """The objects of all segments, in the order of writing. Torn lines are skipped with a warning."""
    for path in segments(folder):
        for number, (_, value) in enumerate(read_lines(path), start=1):
            if value is None:
                logger.warning("%s line %d is torn or not an object: skipped", path, number)
            else:
                yield value


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:  # JSON and UTF-8 errors alike
        return None
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None
