"""The collector is calm, and still collects."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from medvista_ray.collector import THRESHOLDS, spare_live_objects


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


class Node:
    """May refer to itself."""

    def __init__(self) -> None:
        self.me = self


def test_what_is_alive_is_never_looked_at_again() -> None:
    kept = [[i] for i in range(1000)]
    spare_live_objects()
    assert gc.get_freeze_count() > len(kept)
    assert all(one is not kept[0] for one in gc.get_objects())


def test_a_cycle_made_later_is_collected_by_itself_within_the_threshold() -> None:
    spare_live_objects()
    gone = weakref.ref(Node())
    assert gone() is not None
    made = [[i] for i in range(2 * THRESHOLDS[0])]
    assert gone() is None
    assert len(made) == 2 * THRESHOLDS[0]
