"""What a published policy version is: a number, where its bytes are, and how to tell that they are the right ones.

Invariants: a manifest is small and plain, so that it crosses any process boundary as JSON while the tensors stay where
they are; a version that is held (`Held`) cannot be overwritten by its publisher. Made by a transport's publisher, held by
every engine from before it pauses until a later version serves.
"""

from __future__ import annotations

import fcntl
import json
import os
import zlib
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medvista_ray.errors import WeightUpdateError

KEY = "medvista_key"
"""Of the segment's metadata: which publication it holds."""
_CHUNK_BYTES = 1 << 22


class Manifest(BaseModel):
    """One policy version on its way from the learner to the engines."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: Annotated[int, Field(ge=0)]
    path: str = ""
    """Where processes of this node open its segment (safetensors); empty while it is elsewhere (see `weights.transport`)."""
    key: str = ""
    """Differs between any two publications; the segment holds it too, since memory is used again."""
    num_tensors: Annotated[int, Field(gt=0)]
    num_bytes: Annotated[int, Field(gt=0)]
    """Of all that travels: the segment with its header, or the tensors alone."""
    bucket_bytes: Annotated[int, Field(gt=0)] = 64 << 20
    """Bytes behind each checksum; the last one's are fewer."""
    checksums: tuple[str, ...] = ()
    """CRC-32 of each bucket, 8 hex digits; of each tensor where there is no segment. Empty if they were not asked for."""

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
        """Raise WeightUpdateError unless the segment is there, whole, and this publication's."""
        Held(self).close()


class Held:
    """A version's segment, checked, and safe from being overwritten or freed until `close`.

    Raises WeightUpdateError naming what is wrong with it.
    """

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._fd = -1
        try:
            # Without blocking: the number of a closed segment may be a pipe by now, and is then refused below.
            self._fd = os.open(manifest.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            where = "; it is memory of a process on the learner's node (weights.transport 'object_store' reaches others)"
            raise self._error(f"cannot be read: {error.strerror}{where}") from error
        try:
            self._lock()
            self._check()
        except BaseException:  # no fault boundary: whatever it was goes on, and the descriptor does not stay open
            self.close()
            raise

    @property
    def path(self) -> str:
        """Where this process's children open it, whether or not its publisher lives."""
        return f"/proc/{os.getpid()}/fd/{self._fd}"

    def close(self) -> None:
        """Let go of it. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    __del__ = close

    def _lock(self) -> None:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise self._error("is being overwritten by a later version") from None

    def _check(self) -> None:
        wanted = self._manifest
        if (found := os.fstat(self._fd).st_size) != wanted.num_bytes:
            raise self._error(f"holds {found} bytes, expected {wanted.num_bytes}")
        if wanted.key and (key := self._key()) != wanted.key:
            raise self._error(f"holds publication {key!r}, expected {wanted.key!r}: a later version took its place")
        if not wanted.checksums:
            return
        for index, (found, expected) in enumerate(zip(self._checksums(), wanted.checksums, strict=True)):
            if found != expected:
                raise self._error(f"bucket {index} has checksum {found}, expected {expected}")

    def _key(self) -> str:
        """The publication that the header names; empty if there is no such header."""
        length = int.from_bytes(os.pread(self._fd, 8, 0), "little")
        try:
            return str(json.loads(os.pread(self._fd, min(length, self._manifest.num_bytes), 8))["__metadata__"][KEY])
        except (ValueError, KeyError, TypeError):
            return ""

    def _checksums(self) -> Iterator[str]:
        """Of each bucket."""
        size, step = self._manifest.num_bytes, self._manifest.bucket_bytes
        for begin in range(0, size, step):
            value, end = 0, min(begin + step, size)
            for at in range(begin, end, _CHUNK_BYTES):
                value = zlib.crc32(os.pread(self._fd, min(_CHUNK_BYTES, end - at), at), value)
            yield f"{value:08x}"

    def _error(self, what: str) -> WeightUpdateError:
        return WeightUpdateError(f"version {self._manifest.version}: {self._manifest.path} {what}")


class BucketChecksums:
    """CRC-32 of consecutive bytes by bucket, as they pass."""

    def __init__(self, bucket_bytes: int) -> None:
        self._bucket_bytes = bucket_bytes
        self._value, self._room = 0, bucket_bytes
        self._done: list[str] = []

    def add(self, data: memoryview) -> None:
        """The next bytes."""
        while len(data):
            part, data = data[: self._room], data[self._room :]
            self._value = zlib.crc32(part, self._value)
            self._room -= len(part)
            if self._room == 0:
                self._finish()

    def hexdigests(self) -> tuple[str, ...]:
        """Of all bytes added; call it once, behind the last."""
        if self._room < self._bucket_bytes:
            self._finish()
        return tuple(self._done)

    def _finish(self) -> None:
        self._done.append(f"{self._value:08x}")
        self._value, self._room = 0, self._bucket_bytes
