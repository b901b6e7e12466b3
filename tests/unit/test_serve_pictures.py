"""What callers and replicas remember of pictures is bounded, and whatever was forgotten is sent anew."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
import pytest

from medvista_ray.types import MedImage, VolumeImage
from serve_apps import pictures
from serve_apps.args import ToolsAppArgs
from serve_apps.pictures import ImageRefs, KeptPictures, num_bytes
from serve_apps.tools import ToolReplica
from serve_apps.wire import MAX_MESSAGE_BYTES

KIB = 1 << 10


def picture(value: int, num_kib: int = 1) -> MedImage:
    return MedImage(np.full((num_kib, KIB), value, np.uint8), "CT")


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> list[MedImage]:
    """What was put into the object store; the picture itself stands for its reference."""
    put: list[MedImage] = []

    def store(image: MedImage) -> MedImage:
        put.append(image)
        return image

    monkeypatch.setattr(pictures.ray, "put", store)
    return put


def test_a_scan_counts_with_all_its_slices() -> None:
    assert num_bytes(VolumeImage.of(np.zeros((5, 8, 8), np.int16), "CT")) == 5 * 8 * 8 * 2
    assert num_bytes(picture(0, 3)) == 3 * KIB


def values(images: list[MedImage]) -> list[int]:
    return [int(image.pixels[0, 0]) for image in images]


def test_a_picture_is_known_to_the_tools_that_it_was_sent_to(stored: list[MedImage]) -> None:
    refs = ImageRefs(8 * KIB)
    assert refs.unknown_to("measure", []) == []
    assert values(refs.unknown_to("measure", [picture(1)])) == [1]
    refs.sent("measure", [picture(1)])
    assert values(refs.unknown_to("measure", [picture(1), picture(2)])) == [2]
    assert values(refs.unknown_to("zoom_in", [picture(1)])) == [1]
    assert not stored
    for _ in range(2):
        refs.ref(picture(1))
    assert (len(refs), len(stored)) == (1, 1)


def test_a_picture_that_the_caller_forgot_is_stored_and_sent_anew(stored: list[MedImage]) -> None:
    refs, three = ImageRefs(2 * KIB), [picture(1), picture(2), picture(3)]
    for image in three[:2]:
        refs.ref(image)
        refs.sent("measure", [image])
    assert refs.unknown_to("measure", three[:1]) == []  # and thereby it was used lately
    refs.ref(three[2])
    assert values(refs.unknown_to("measure", three)) == [2, 3]
    refs.forget(three[:2])
    assert values(refs.unknown_to("measure", three)) == [1, 2, 3]
    refs.ref(three[0])
    assert (len(refs), len(stored)) == (2, 4)


def test_a_picture_that_no_replica_keeps_is_never_sent_by_its_key(
    stored: list[MedImage], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "KEPT_BYTES", KIB)
    refs = ImageRefs(8 * KIB)
    refs.sent("measure", [picture(1, 2)])
    assert values(refs.unknown_to("measure", [picture(1, 2)])) == [1]


def test_a_replica_keeps_the_pictures_used_last() -> None:
    kept = KeptPictures(2 * KIB)
    for value in (1, 2, 1, 3):
        kept.keep(picture(value))
    assert kept.find({0: picture(2).key}) is None
    found = kept.find({4: picture(1).key, 6: picture(3).key})
    assert found is not None
    assert {index: int(image.pixels[0, 0]) for index, image in found.items()} == {4: 1, 6: 3}
    kept.keep(picture(9, 3))
    assert kept.find({0: picture(9, 3).key}) is None
    assert kept.find({0: picture(1).key, 1: picture(3).key}) is not None
    assert kept.find({}) == {}
    with pytest.raises(ValueError, match="read-only"):
        found[4].pixels[0, 0] = 7


@pytest.mark.parametrize(("scale", "is_answered"), [(1.0, True), (16.0, False)])
def test_a_replica_answers_by_message_what_fits_one(scale: float, is_answered: bool) -> None:
    image = MedImage(np.zeros((400, 400), np.float32), "CT", (1.0, 1.0), "HU", (0.0, 1.0))
    arguments: dict[str, Any] = {"bbox": [0, 0, 800, 800], "scale": scale}

    async def body() -> None:
        replica = ToolReplica("zoom_in", ToolsAppArgs(family="refine", names=("zoom_in",)))
        assert await replica.call_known(arguments, (1, 0), {0: image.key}, {}) is None
        (outcome, _) = await replica.call(arguments, (1, 0), (0,), {}, image)
        assert outcome.result is not None
        assert (num_bytes(outcome.result.images[0]) <= MAX_MESSAGE_BYTES) is is_answered
        answer = await replica.call_known(arguments, (1, 0), {0: image.key}, {})
        assert (answer is not None) is is_answered
        if answer is not None and answer[0].result is not None:
            assert answer[0].result.images[0].key == outcome.result.images[0].key

    asyncio.run(body())
