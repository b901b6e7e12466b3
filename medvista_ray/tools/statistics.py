"""Calls, errors and latencies per tool, as a client saw them.

Invariant: memory is bounded, and several threads may record at once. Owned by the tool clients.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from typing import TypedDict

import numpy as np

from medvista_ray.types import ToolOutcome

_NUM_KEPT = 4096


class ToolStats(TypedDict):
    """One tool's figures. Percentiles are over the last 4,096 calls and include queueing and retries."""

    num_calls: int
    num_errors: int
    """Calls that ended in an error code (a policy's mistakes included)."""
    errors: dict[str, int]
    """Calls per error code."""
    num_retries: int
    """Infrastructure retries."""
    p50_ms: float
    p95_ms: float
    tool_p50_ms: float
    """Median time inside the tool itself."""


class CallStatistics:
    """Collects outcomes; `summary` may be called at any time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._calls: Counter[str] = Counter()
        self._retries: Counter[str] = Counter()
        self._errors: dict[str, Counter[str]] = {}
        self._wall_s: dict[str, deque[float]] = {}
        self._tool_s: dict[str, deque[float]] = {}

    def record(self, name: str, outcome: ToolOutcome, wall_s: float) -> None:
        """Count one finished call that took `wall_s` seconds for its caller."""
        with self._lock:
            self._calls[name] += 1
            self._retries[name] += outcome.num_retries
            errors = self._errors.setdefault(name, Counter())
            if outcome.error:
                errors[outcome.error.value] += 1
            self._wall_s.setdefault(name, deque(maxlen=_NUM_KEPT)).append(wall_s)
            self._tool_s.setdefault(name, deque(maxlen=_NUM_KEPT)).append(outcome.latency_s)

    def summary(self) -> dict[str, ToolStats]:
        """Figures per tool that was called at least once."""
        with self._lock:
            return {name: self._one(name) for name in sorted(self._calls)}

    def _one(self, name: str) -> ToolStats:
        wall_ms = np.fromiter(self._wall_s[name], float) * 1e3
        return ToolStats(
            num_calls=self._calls[name],
            num_errors=sum(self._errors[name].values()),
            errors=dict(self._errors[name]),
            num_retries=self._retries[name],
            p50_ms=float(np.percentile(wall_ms, 50)),
            p95_ms=float(np.percentile(wall_ms, 95)),
            tool_p50_ms=float(np.percentile(np.fromiter(self._tool_s[name], float), 50) * 1e3),
        )
