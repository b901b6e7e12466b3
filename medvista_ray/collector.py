"""How often Python's cyclic garbage collector looks, in a process that holds very many live objects.

The collector's work grows with what is alive and not with what is garbage: at 1,024 generators the coordinator holds a
million objects of finished episodes, and the default thresholds spent a seventh of its CPU on looking at them again
and again, with pauses of half a second. Called by the coordinator.
"""

from __future__ import annotations

import gc
from typing import Final

THRESHOLDS: Final = (50_000, 20, 100)
"""Objects made and not freed before the youngest are looked at; of such looks, before the middle ones; of those, before all.
Bounds what cycles may hold: 50,000 objects of the youngest."""


def spare_live_objects() -> None:
    """Never look again at what is alive now (modules, configuration, tasks), and seldom at what comes."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
