"""What a published policy version is: a number, a file, and how to tell that the file is whole.

Invariant: a manifest is small and plain, so that it crosses any process boundary as JSON while the tensors stay where
they are. Made by a transport's publisher, read by every engine before it pauses (`check`).
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvista_ray.errors import WeightUpdateError

_CHUNK_BYTES = 1 << 22


class Manifest(BaseModel):
    """One policy version on its way from the learner to the engines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=0)]
    path: str
    """The safetensors file."""
    num_tensors: Annotated[int, Field(gt=0)]
    num_bytes: Annotated[int, Field(gt=0)]
    """Size of the file."""
    checksum: str | None = None
    """CRC-32 of the file, 8 hex digits; None if the publisher did not compute it."""

    def to_json(self) -> str:
        """As one line of JSON."""
        return self.model_dump_json()

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The inverse of `to_json`. Raises WeightUpdateError if `text` is not a manifest."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise WeightUpdateError(f"not a weight manifest: {error}") from error

    def check(self) -> None:
        """Raise WeightUpdateError unless the file is there, of the right size and with the right checksum."""
        file = Path(self.path)
        try:
            num_bytes = file.stat().st_size
        except OSError as error:
            raise WeightUpdateError(f"version {self.version}: {self.path} cannot be read: {error.strerror}") from error
        if num_bytes != self.num_bytes:
            raise WeightUpdateError(f"version {self.version}: {self.path} holds {num_bytes} bytes, expected {self.num_bytes}")
        if self.checksum is not None and (found := file_checksum(file)) != self.checksum:
            raise WeightUpdateError(f"version {self.version}: {self.path} has checksum {found}, expected {self.checksum}")


def file_checksum(file: Path) -> str:
    """CRC-32 of a file as 8 hex digits (about 1 GB/s; it guards against torn writes, not against malice)."""
    value = 0
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return f"{value:08x}"
