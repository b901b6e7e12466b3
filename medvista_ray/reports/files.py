"""Small file habits of the reports: whole-file writes that are never seen half made, JSON lines that survive a kill.

Invariant: a reader of a run folder sees the old file or the new one; a torn line costs that line only.
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

logger = logging.getLogger(__name__)


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` to `path` through a temporary file in the same folder and a rename.

    Raises OSError (a full disk, no permission); the old file then stands and the temporary one is removed.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        os.replace(name, path)
    except BaseException:  # also on Ctrl-C: leave nothing half made
        Path(name).unlink(missing_ok=True)
        raise


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, in order; no file means none. Torn lines are skipped with a warning."""
    if not path.exists():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                value = json.loads(line)
            except (json.JSONDecodeError, UnicodeDecodeError):
                value = None
            if isinstance(value, dict):
                yield cast("dict[str, Any]", value)
            else:
                logger.warning("%s line %d is torn or not an object: skipped", path, number)


def end_torn_line(path: Path) -> None:
    """Close a last line that a kill left without its newline, so that the next append starts a line of its own."""
    if not path.exists() or path.stat().st_size == 0:
        return
    with path.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        if file.read(1) != b"\n":
            file.write(b"\n")
