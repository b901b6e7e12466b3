"""Tools in the caller's own process: for tests, notebooks and the expert.

Invariant: every call ends within `timeout_s`. A call that takes longer is abandoned (its thread finishes on its own;
a thread cannot be killed) and becomes an E5 observation. Implements `ToolClient`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from medvista_ray.tools.base import Tool, ToolContext, ToolOptions
from medvista_ray.tools.catalog import load_tools, unknown_tool
from medvista_ray.tools.execution import failure
from medvista_ray.tools.hosting import ToolHost
from medvista_ray.tools.statistics import CallStatistics, ToolStats
from medvista_ray.types import ToolOutcome


class LocalToolClient:
    """Runs tools in threads. Set-up happens here, so that absent data is an error at once."""

    def __init__(self, names: Iterable[str], timeout_s: float = 30.0, options: ToolOptions | None = None) -> None:
        self.specs: tuple[type[Tool], ...] = load_tools(names)
        self._statistics = CallStatistics()
        self._hosts: dict[str, ToolHost] = {}
        for spec in self.specs:
            tool = spec(options)
            tool.setup()
            self._hosts[spec.name] = ToolHost(tool, timeout_s)

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Run one call; see ToolClient. Never raises ToolInfrastructureError."""
        host = self._hosts.get(name)
        if host is None:
            return failure(*unknown_tool(name, self.specs))
        start = time.perf_counter()
        outcome = await host.call(arguments, context)
        self._statistics.record(name, outcome, time.perf_counter() - start)
        return outcome

    def __deepcopy__(self, memo: object) -> LocalToolClient:
        """A handle, not a value: who copies a configuration that holds it (Gymnasium's specs) shares the tools."""
        return self

    def stats(self) -> dict[str, ToolStats]:
        """Figures per tool so far."""
        return self._statistics.summary()

    def close(self) -> None:
        """Take no more calls; running ones finish on their own."""
        for host in self._hosts.values():
            host.close()
