"""Weights through shared memory on one node: a safetensors file in /dev/shm that the engines map.

Invariants: a file appears whole (written under a temporary name, then renamed) or not at all; the two newest versions
stay, so that an engine may still read the one before; nothing stays after `close`. Called by the learner after every
step.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections import deque
from pathlib import Path

import torch
from safetensors.torch import save_file

from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import Manifest, file_checksum
from medvista_ray.weights.transport import NamedTensors

SHARED_MEMORY = Path("/dev/shm")
NUM_KEPT = 2
"""Versions that stay readable."""
# safetensors' header and its alignment.
_HEADROOM_BYTES = 1 << 20


class SharedMemoryPublisher:
    """Publishes versions as files of /dev/shm/medvista-<run_id> (of the temporary folder where /dev/shm is absent)."""

    def __init__(self, run_id: str, root: Path | None = None, with_checksum: bool = True) -> None:
        name = re.sub(r"[^A-Za-z0-9_.-]+", "-", run_id)
        self.folder = (root or _default_root()) / f"medvista-{name}"
        self._with_checksum = with_checksum
        self._published: deque[Path] = deque()
        self._num_written = 0

    def publish(self, named_tensors: NamedTensors, version: int) -> Manifest:
        """Write the tensors (any shape, device and dtype) as `version`; the version before the previous one goes.

        Raises WeightUpdateError if there is nothing to publish or no room for it.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in named_tensors}
        if not tensors:
            raise WeightUpdateError(f"version {version}: no tensors to publish")
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        # A serial number as well: a run that was rolled back publishes a version again, and its old file may be mapped.
        self._num_written += 1
        file = self.folder / f"v{version:06d}-{os.getpid()}-{self._num_written}.safetensors"
        self._write(tensors, file)
        self._published.append(file)
        while len(self._published) > NUM_KEPT:
            self._published.popleft().unlink(missing_ok=True)
        return Manifest(
            version=version,
            path=str(file),
            num_tensors=len(tensors),
            num_bytes=file.stat().st_size,
            checksum=file_checksum(file) if self._with_checksum else None,
        )

    def close(self) -> None:
        """Remove the folder and all versions. An engine that still maps one keeps its memory until it lets go."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._published.clear()

    def _write(self, tensors: dict[str, torch.Tensor], file: Path) -> None:
        self._check_room(sum(tensor.nbytes for tensor in tensors.values()), file)
        temporary = file.with_suffix(".tmp")
        try:
            save_file(tensors, temporary)
            temporary.replace(file)
        # safetensors reports a failed write as its own exception type, which is no OSError.
        except Exception as error:
            temporary.unlink(missing_ok=True)
            raise WeightUpdateError(f"{file} cannot be written: {error}") from error

    def _check_room(self, num_bytes: int, file: Path) -> None:
        """Writing to a full /dev/shm ends in SIGBUS (the file is mapped), so ask first."""
        free = shutil.disk_usage(self.folder).free
        if num_bytes + _HEADROOM_BYTES > free:
            raise WeightUpdateError(
                f"{file}: {num_bytes / 2**20:.0f} MiB of weights do not fit, {free / 2**20:.0f} MiB are free; "
                "enlarge the file system (docker run --shm-size) or remove what fills it"
            )


def _default_root() -> Path:
    writable = SHARED_MEMORY.is_dir() and os.access(SHARED_MEMORY, os.W_OK)
    return SHARED_MEMORY if writable else Path(tempfile.gettempdir())
