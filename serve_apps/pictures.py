"""Pictures on their way to the tools, by content hash: references at the caller, the pictures themselves at a replica.

Invariants: both sides are bounded by bytes, the least recently used forgotten first, so that an absent picture is never
an error: a caller sends it anew, a replica asks for it again. What a replica keeps is read-only, so that no tool changes
what another call sees. Used by `serve_apps.tool_client` and `serve_apps.tools`, each on one event loop.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import ray

from medvista_ray.types import MedImage, VolumeImage

KEPT_BYTES = 64 << 20
"""What a replica keeps; a picture that is larger always travels by reference."""


def num_bytes(image: MedImage) -> int:
    """Memory of a picture, of all its slices if it is a scan."""
    return image.slices.nbytes if isinstance(image, VolumeImage) else image.pixels.nbytes


@dataclass
class _Stored:
    num_bytes: int
    ref: ray.ObjectRef[MedImage] | None = None
    tools: set[str] = field(default_factory=set[str])
    """Those that it was sent to."""


class ImageRefs:
    """Which tools were sent which pictures, and references to those that had to be stored."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._stored: OrderedDict[str, _Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def unknown_to(self, tool: str, images: Iterable[MedImage]) -> list[MedImage]:
        """Those that were not sent to that tool; of the others the keys may do."""
        unknown: list[MedImage] = []
        for image in images:
            stored = self._stored.get(image.key)
            if stored is None or tool not in stored.tools:
                unknown.append(image)
            else:
                self._stored.move_to_end(image.key)
        return unknown

    def sent(self, tool: str, images: Iterable[MedImage]) -> None:
        """That tool has these now."""
        for image in images:
            stored = self._entry(image)
            if stored.num_bytes <= KEPT_BYTES:
                stored.tools.add(tool)

    def ref(self, image: MedImage) -> ray.ObjectRef[MedImage]:
        """A reference to `image`; it is stored if no equal picture is."""
        stored = self._entry(image)  # its key is computed before it is stored, so that the hash travels along
        if stored.ref is None:
            stored.ref = ray.put(image)
        return stored.ref

    def _entry(self, image: MedImage) -> _Stored:
        key = image.key
        if key not in self._stored:
            self._stored[key] = _Stored(num_bytes(image))
            self._num_bytes += num_bytes(image)
        self._stored.move_to_end(key)
        while self._num_bytes > self._max_bytes and len(self._stored) > 1:
            self._num_bytes -= self._stored.popitem(last=False)[1].num_bytes
        return self._stored[key]

    def forget(self, images: Iterable[MedImage]) -> None:
        """Send these anew next time."""
        for image in images:
            stored = self._stored.pop(image.key, None)
            self._num_bytes -= stored.num_bytes if stored else 0


class KeptPictures:
    """The pictures that a replica was sent lately."""

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._pictures: OrderedDict[str, MedImage] = OrderedDict()

    def keep(self, image: MedImage) -> None:
        """Keep it in place of the least recently used ones, unless it is larger than the bound by itself."""
        if image.key not in self._pictures and num_bytes(image) <= self._max_bytes:
            for array in (image.pixels, image.slices) if isinstance(image, VolumeImage) else (image.pixels,):
                array.flags.writeable = False
            self._pictures[image.key] = image
            self._num_bytes += num_bytes(image)
        if image.key in self._pictures:
            self._pictures.move_to_end(image.key)
        while self._num_bytes > self._max_bytes:
            self._num_bytes -= num_bytes(self._pictures.popitem(last=False)[1])

    def find(self, keys: Mapping[int, str]) -> dict[int, MedImage] | None:
        """The pictures by the indices that `keys` has; None if one is not here."""
        if any(key not in self._pictures for key in keys.values()):
            return None
        for key in keys.values():
            self._pictures.move_to_end(key)
        return {index: self._pictures[key] for index, key in keys.items()}
