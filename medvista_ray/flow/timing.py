"""Where each role's time goes: who works, and who waits for whom.

Invariant: a role is in exactly one activity at any instant, so that its activities' seconds add up to its life time.
Pure: the caller passes the clock's reading. Called by `flow.loop` and `flow.fleet`.
"""

from __future__ import annotations

from collections import defaultdict


class Occupancy:
    """Seconds that one role spent in each activity since it began."""

    def __init__(self, activity: str, now_s: float) -> None:
        self.activity = activity
        self._since_s = now_s
        self._seconds: defaultdict[str, float] = defaultdict(float)

    def enter(self, activity: str, now_s: float) -> None:
        """The role changes to `activity`."""
        self._seconds[self.activity] += now_s - self._since_s
        self.activity, self._since_s = activity, now_s

    def seconds(self, now_s: float) -> dict[str, float]:
        """Seconds per activity, the present one included."""
        total = dict(self._seconds)
        total[self.activity] = total.get(self.activity, 0.0) + now_s - self._since_s
        return total

    def idle_fraction(self, busy: frozenset[str], now_s: float) -> float:
        """Share of the time spent in activities other than `busy`, 0..1 (0 for a role without any time)."""
        present_s = now_s - self._since_s
        total = sum(self._seconds.values()) + present_s
        working = sum(self._seconds[name] for name in busy & self._seconds.keys())
        working += present_s if self.activity in busy else 0.0
        return 1.0 - working / total if total > 0 else 0.0
