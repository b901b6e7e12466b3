"""Weights through shared memory on one node: one copy into a segment that the engines map.

Invariants: a version is whole before its manifest exists; the newest stays readable until `close`, and any other as
long as an engine holds it; nothing stays on the machine when this process ends, however it ends. Called by the learner
after every step.
"""

from __future__ import annotations

import uuid

from medvista_ray.config import WeightsConfig
from medvista_ray.weights.manifest import BucketChecksums, Manifest
from medvista_ray.weights.segment import Bytes, Layout, SegmentPool
from medvista_ray.weights.transport import NamedTensors


class SharedMemoryPublisher:
    """Publishes versions as segments of this process."""

    def __init__(self, run_id: str, config: WeightsConfig | None = None, **_: object) -> None:
        self._config = config or WeightsConfig()
        self._pool = SegmentPool(f"medvista-{run_id}")

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Copy the tensors (any shape and device) into a segment.

        Raises WeightUpdateError if there is nothing to publish or no memory for it.
        """
        key = uuid.uuid4().hex
        layout = Layout.of(named_tensors, key)
        checksums = BucketChecksums(self._config.bucket_bytes)

        def observe(piece: Bytes) -> None:
            checksums.add(piece.data)

        segment = self._pool.write(layout.num_bytes, layout.pieces(), observe if self._config.checksum else None)
        return Manifest(
            version=version,
            path=segment.path,
            key=key,
            num_tensors=len(layout.tensors),
            num_bytes=layout.num_bytes,
            bucket_bytes=self._config.bucket_bytes,
            checksums=checksums.hexdigests(),
        )

    def close(self) -> None:
        """Let go of all versions. An engine that holds one keeps its memory until it lets go."""
        self._pool.close()
