"""Weights through a distributed object store: for nodes that share no memory.

The publisher stores a version in buckets, views of the learner's tensors that the store copies once; a relay on each
node fetches them (one copy per node) and makes a segment of them, which the node's engines map as with shared memory.
The store itself is the caller's (`put`, and a fetched bucket): this module knows nothing of Ray.

Invariant: a landed segment is byte for byte what `shared_memory` would have published, key and checksums included.
Called by the learner actor and by `actors.weights`.
"""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from medvista_ray.config import WeightsConfig
from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import BucketChecksums, Manifest
from medvista_ray.weights.segment import Bytes, Layout, SegmentPool, buckets
from medvista_ray.weights.transport import NamedTensors

NUM_KEPT = 2
"""Versions that stay in the store."""


class ObjectStorePublisher:
    """Publishes versions as buckets; `put` stores a list of byte arrays and returns what fetches it."""

    def __init__(self, run_id: str, config: WeightsConfig | None = None, *, put: Callable[[list[Bytes]], Any]) -> None:
        self._config = config or WeightsConfig()
        self._put = put
        self._stored: dict[int, list[Any]] = {}

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Store the tensors. Raises WeightUpdateError if there are none, and what the store raises."""
        key = uuid.uuid4().hex
        layout = Layout.of(named_tensors, key)
        checksums = BucketChecksums(self._config.bucket_bytes)
        stored: list[Any] = []
        for bucket in buckets(layout.pieces(), self._config.bucket_bytes):
            if self._config.checksum:
                for piece in bucket:
                    checksums.add(piece.data)
            stored.append(self._put(bucket))
        self._stored.pop(version, None)
        self._stored[version] = stored
        for old in list(self._stored)[:-NUM_KEPT]:
            del self._stored[old]
        return Manifest(
            version=version,
            key=key,
            num_tensors=len(layout.tensors),
            num_bytes=layout.num_bytes,
            bucket_bytes=self._config.bucket_bytes,
            checksums=checksums.hexdigests(),
        )

    def stored(self, version: int) -> list[Any]:
        """What `put` returned for each bucket of `version`. Raises WeightUpdateError if it is no longer kept."""
        try:
            return self._stored[version]
        except KeyError:
            raise WeightUpdateError(f"version {version} is not in the store; kept are {sorted(self._stored)}") from None

    def close(self) -> None:
        """Forget all versions; the store frees them once no node reads them."""
        self._stored.clear()


class Relay:
    """A node's end: fetched buckets become one segment, once per version, whoever asks."""

    def __init__(self, run_id: str) -> None:
        self._pool = SegmentPool(f"medvista-{run_id}-relay")
        self._landed: Manifest | None = None

    def land(self, manifest: Manifest, fetch: Callable[[], Iterable[list[Bytes]]]) -> Manifest:
        """The manifest of the version's segment on this node; `fetch` is called unless it is here already.

        Raises WeightUpdateError if the buckets hold fewer or more bytes than the manifest says.
        """
        if self._landed is None or self._landed.key != manifest.key:
            pieces = _exactly(manifest, itertools.chain.from_iterable(fetch()))
            segment = self._pool.write(manifest.num_bytes, pieces)
            self._landed = manifest.model_copy(update={"path": segment.path})
        return manifest.model_copy(update={"path": self._landed.path})

    def close(self) -> None:
        """Let go of all segments."""
        self._pool.close()
        self._landed = None


def _exactly(manifest: Manifest, pieces: Iterable[Bytes]) -> Iterator[Bytes]:
    num_bytes = 0
    for piece in pieces:
        num_bytes += len(piece)
        if num_bytes > manifest.num_bytes:
            break
        yield np.asarray(piece)
    if num_bytes != manifest.num_bytes:
        raise WeightUpdateError(
            f"version {manifest.version}: the store's buckets do not hold the {manifest.num_bytes} bytes expected "
            f"(counted up to {num_bytes})"
        )
