"""When a tool gets more replicas or fewer: by the work that waits at its replicas, in seconds, not by the number of calls.

Calls in flight say little: rollouts are a closed loop that fills whatever is offered, and 64 waiting crops are done in a
moment, 8 waiting segmentations in ten seconds. So each replica reports what waits times how long a call takes, and how
busy it is (`ToolReplica.record_autoscaling_stats`). Invariant: standard library only, no I/O, nothing kept between two
decisions: Ray Serve's controller imports this on a node where only the package is installed and runs it ten times a
second. Serve applies bounds, delays and factors on top. Named in a deployment by its path (`POLICY`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Protocol

POLICY = "serve_apps.autoscaling:QueueDepthPolicy"
BACKLOG_S, BUSY, SERVICE_S = "backlog_s", "busy", "service_s"
"""What a replica reports: seconds until it would be idle, share of its slots that compute, seconds of a usual call."""


class Context(Protocol):
    """The part of ray.serve.config.AutoscalingContext that is read here."""

    target_num_replicas: int

    @property
    def aggregated_metrics(self) -> Mapping[str, Mapping[Any, float]] | None:
        """Means over the look-back period, by metric and replica."""
        ...

    @property
    def total_queued_requests(self) -> float | None:
        """Calls that wait at their callers, because every replica is full or none runs."""
        ...


class QueueDepthPolicy:
    """As many replicas as keep the waiting below `target_wait_s` and each replica's time used below `max_busy`."""

    def __init__(self, target_wait_s: float = 0.5, max_busy: float = 0.8) -> None:
        """Raises ValueError for a bound that no number of replicas could keep."""
        if target_wait_s <= 0 or not 0 < max_busy <= 1:
            raise ValueError(f"target_wait_s = {target_wait_s}: above 0 needed; max_busy = {max_busy}: 0..1 needed")
        self.target_wait_s = target_wait_s
        self.max_busy = max_busy

    def __call__(self, ctx: Context) -> tuple[int, dict[str, Any]]:
        """Replicas wanted; no state of its own."""
        metrics = ctx.aggregated_metrics or {}
        busy = sum(metrics.get(BUSY, {}).values())
        num_queued = ctx.total_queued_requests or 0.0
        if not metrics.get(BUSY):  # nobody has reported yet: keep what there is, but leave zero if somebody waits
            return max(ctx.target_num_replicas, int(num_queued > 0)), {}
        service = metrics.get(SERVICE_S, {}).values()
        backlog_s = sum(metrics.get(BACKLOG_S, {}).values()) + num_queued * sum(service) / max(len(service), 1)
        return math.ceil(max(backlog_s / self.target_wait_s, busy / self.max_busy) - 1e-9), {}
