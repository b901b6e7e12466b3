"""How many groups one generator may have in flight: grown while the engine has room, trimmed and cut when it has none.

Too few groups starve the batch; too many fill the KV cache, so that the engine preempts requests and computes their
prefill again, and every group gets staler while it queues. The limit follows what the engine says of itself each time
a group comes back (additive increase, multiplicative decrease, with a dead band between):

    grow   +1     the limit was reached, nothing queues, and the cache has room
    trim   -1     requests queue for a place in the batch, or the cache is nearly full
    cut    / 2    the cache is full: once, until the groups in flight have come down to the new limit

Invariant: smallest <= limit <= largest. Pure: no clock, no tasks. Admission still bounds the sum over all generators.
Called by `flow.fleet`.
"""

from __future__ import annotations

from dataclasses import dataclass

from medvista_ray.types import EngineLoad

ROOMY, NEARLY_FULL, FULL = 0.70, 0.85, 0.97
"""Shares of the KV cache in use: below the first there is room; from the others on the limit is trimmed, or cut."""


@dataclass
class ConcurrencyLimit:
    """The limit of one generator."""

    largest: int
    smallest: int = 1
    limit: int = 0
    """Groups in flight, at most; 0 begins at `largest`, which is what a run without feedback has."""
    is_cutting: bool = False
    """A cut has not taken effect yet."""

    def __post_init__(self) -> None:
        self.limit = self.limit or self.largest

    def observe(self, load: EngineLoad, num_groups: int) -> int:
        """The limit after the engine, with `num_groups` in flight (the one that has just come back included), said `load`."""
        self.is_cutting = self.is_cutting and num_groups > self.limit
        if load.kv_use >= FULL:
            if not self.is_cutting:
                self.limit = min(self.limit, num_groups) // 2
                self.is_cutting = True
        elif load.kv_use >= NEARLY_FULL or load.num_queued > 0:
            if not self.is_cutting:
                self.limit = min(self.limit, num_groups) - 1
        elif load.kv_use < ROOMY and num_groups >= self.limit:
            self.limit += 1
        self.limit = max(self.smallest, min(self.limit, self.largest))
        return self.limit
