"""Reading of the tables in which sets are published: JSON, JSON lines, CSV, TSV with base64 pictures, parquet.

Invariant: big tables stream, and pictures in cells are skipped until one is asked for. pyarrow is imported when a parquet
file is. Errors are DatasetErrors that name the file. Called by the sets and by `pictures`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

from medvista_ray.errors import DatasetError

_BATCH_ROWS = 64
_NUM_GROUPS_KEPT = 2
_NUM_FILES_KEPT = 16
_READING = Lock()  # episodes open their pictures on several threads, and a parquet file has one cursor


def read_json(path: Path) -> list[dict[str, Any]]:
    """A JSON file that holds a list of objects."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise DatasetError(f"{str(path)!r} is not readable JSON: {error}") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise DatasetError(f"{str(path)!r}: expected a list of objects")
    return rows


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """A file with one JSON object a line."""
    with _text(path) as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DatasetError(f"{str(path)!r} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise DatasetError(f"{str(path)!r} line {number}: expected an object")
            yield row


def read_csv(path: Path, columns: Sequence[str], separator: str = ",") -> Iterator[dict[str, str]]:
    """A CSV file with a header that has these columns; a short row lacks its last ones."""
    with _text(path) as lines:
        reader = csv.DictReader(lines, delimiter=separator)
        require_columns(path, reader.fieldnames or (), columns)
        try:
            yield from ({key: value or "" for key, value in row.items() if isinstance(key, str)} for row in reader)
        except csv.Error as error:
            raise DatasetError(f"{str(path)!r} line {reader.line_num} is not CSV: {error}") from error


def require_columns(path: Path, found: Sequence[str], needed: Sequence[str]) -> None:
    """Raises DatasetError if a column is not there: another set, or another version of it."""
    missing = [name for name in needed if name not in found]
    if missing:
        raise DatasetError(f"{str(path)!r}: no column {missing[0]!r}; found {', '.join(found)}")


def read_tsv(path: Path) -> Iterator[tuple[int, int, list[str]]]:
    """(offset, length in bytes, fields) of each record, the header first; a quoted field may hold line breaks."""
    try:
        with path.open("rb") as file:
            record, offset = b"", 0
            for line in file:
                record += line
                if record.count(b'"') % 2 == 0:
                    yield offset, len(record), tsv_fields(record.decode())
                    offset, record = offset + len(record), b""
    except (OSError, UnicodeDecodeError) as error:
        raise DatasetError(f"{str(path)!r} is not a readable TSV file: {error}") from error


def tsv_fields(record: str) -> list[str]:
    """Fields of one TSV record. The csv module stops at fields of 128 KiB, which base64 pictures exceed."""
    record = record.rstrip("\r\n")
    fields: list[str] = []
    at = 0
    while True:
        if record.startswith('"', at):
            end = record.find('"', at + 1)
            while record.startswith('""', end):
                end = record.find('"', end + 2)
            end = len(record) if end < 0 else end
            fields.append(record[at + 1 : end].replace('""', '"'))
            at = end + 1
        else:
            end = record.find("\t", at)
            end = len(record) if end < 0 else end
            fields.append(record[at:end])
            at = end
        if at >= len(record):
            return fields
        at += 1


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Rows with these columns alone, a few at a time."""
    file = _parquet(path)
    require_columns(path, file.schema_arrow.names, columns)
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=list(columns)):
        yield from batch.to_pylist()


def parquet_columns(path: Path) -> list[str]:
    """Names of the columns."""
    return list(_parquet(path).schema_arrow.names)


def parquet_cell(path: Path, column: str, row: int, item: int | None = None) -> Any:
    """One cell (of a list cell, one item). Reads its row group, and keeps the last ones. Raises IndexError."""
    metadata = _parquet(path).metadata
    for group in range(metadata.num_row_groups):
        num_rows = metadata.row_group(group).num_rows
        if row < num_rows:
            with _READING:
                value = _group(path, group, column)[row].as_py()
            return value if item is None else value[item]
        row -= num_rows
    raise IndexError(f"row {row} is past the end")


def cell_bytes(cell: Any) -> bytes:
    """Encoded picture in a cell of the `datasets` library's Image type, {"bytes", "path"}. Raises KeyError if it has none."""
    data = cell.get("bytes") if isinstance(cell, dict) else cell
    if not isinstance(data, bytes):
        raise KeyError("the cell holds no picture")
    return data


@lru_cache(maxsize=_NUM_GROUPS_KEPT)
def _group(path: Path, group: int, column: str) -> Any:
    return _parquet(path).read_row_group(group, columns=[column]).column(0)


@lru_cache(maxsize=_NUM_FILES_KEPT)
def _parquet(path: Path) -> Any:
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        return ParquetFile(path)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise DatasetError(f"{str(path)!r} is not a readable parquet file: {error}") from error


def _text(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8-sig", errors="replace", newline="")
    except OSError as error:
        raise DatasetError(f"{str(path)!r} cannot be read: {error.strerror}") from error
