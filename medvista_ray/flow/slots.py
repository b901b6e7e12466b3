"""One generator as the loop sees it: its version, its groups, what it does, and the bounds on every wait for it.

Invariant: a slot is in exactly one activity at any instant. Called by `flow.fleet` and, for the bounds, `flow.loop`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from medvista_ray.flow.concurrency import ConcurrencyLimit
from medvista_ray.flow.health import RestartPolicy
from medvista_ray.flow.protocols import Generator
from medvista_ray.flow.timing import Occupancy

NOTHING_LOADED = -1
BUSY = frozenset({"generating"})
"""Activities that count as work."""


@dataclass(frozen=True)
class Limits:
    """Bounds on every wait, in seconds."""

    ready_s: float = 300.0
    load_s: float = 120.0
    group_s: float = 900.0
    learner_s: float = 3600.0


@dataclass(eq=False)
class Slot:
    """One generator as the loop sees it."""

    generator: Generator
    occupancy: Occupancy
    concurrency: ConcurrencyLimit
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    version: int = NOTHING_LOADED
    """Last version it completely loaded."""
    life: int = 0
    """Grows with every fault, so that the same fault is handled once."""
    usable: bool = False
    emptied: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its last group came back; of use once it gets no more."""
    lost: bool = False
    """Given up, or leaving the run."""
    loading: bool = False
    num_groups: int = 0
    load: int | None = None
    """Under which it is found when work is given out; None while it may have none."""

    def activity(self, target: int) -> str:
        """What it does, where `target` is the newest version."""
        if self.lost:
            return "lost"
        if not self.usable:
            return "recovering"
        if self.num_groups:
            return "generating"
        return "waiting_for_weights" if self.version < target else "waiting_for_learner"
