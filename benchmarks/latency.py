"""Tools that take as long as tools elsewhere do: the shipped ones, behind a wait of log-normal length.

Invariant: waiting costs no CPU, and a client's waits depend on its seed and the order of its calls alone. Called by
`benchmarks.pipeline`.
"""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from medvista_ray.tools.base import Tool, ToolClient, ToolContext
from medvista_ray.types import ToolOutcome

Z_99 = 2.3263478740408408
"""The 99th percentile of the standard normal distribution."""


@dataclass(frozen=True)
class LogNormal:
    """A log-normal duration given by its mean and its 99th percentile, in seconds."""

    mean_s: float = 0.3
    p99_s: float = 3.0

    @property
    def sigma(self) -> float:
        """Of the logarithm: the smaller root of sigma^2 / 2 - z sigma + log(p99 / mean) = 0."""
        return Z_99 - math.sqrt(Z_99**2 - 2.0 * math.log(self.p99_s / self.mean_s))

    @property
    def mu(self) -> float:
        """Of the logarithm."""
        return math.log(self.mean_s) - self.sigma**2 / 2.0

    def draw(self, rng: random.Random) -> float:
        """One duration, in seconds."""
        return rng.lognormvariate(self.mu, self.sigma)


class LatentTools:
    """A ToolClient: waits, then calls the one behind it."""

    def __init__(self, client: ToolClient, latency: LogNormal, seed: int) -> None:
        self._client = client
        self._latency = latency
        self._random = random.Random(seed)

    @property
    def specs(self) -> tuple[type[Tool], ...]:
        """Those of the client behind it."""
        return self._client.specs

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """As ToolClient says, after a wait."""
        await asyncio.sleep(self._latency.draw(self._random))
        return await self._client.call(name, arguments, context)
