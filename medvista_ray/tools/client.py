"""Tools in the caller's own process: for tests, notebooks and the expert.

Invariant: every call ends within `timeout_s`. A call that takes longer is abandoned (its thread finishes on its own; a thread
cannot be killed) and becomes an E5 observation. Implements `ToolClient`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from medvista_ray.tools.base import Tool, ToolContext, ToolOptions
from medvista_ray.tools.catalog import load_tools, unknown_tool
from medvista_ray.tools.execution import execute, failure
from medvista_ray.tools.statistics import CallStatistics, ToolStats
from medvista_ray.types import ErrorCode, ToolOutcome


class LocalToolClient:
    """Runs tools in a small pool of threads. Set-up happens here, so that absent data is an error at once."""

    def __init__(
        self,
        names: Iterable[str],
        timeout_s: float = 30.0,
        options: ToolOptions | None = None,
        num_workers: int = 4,
    ) -> None:
        self.specs: tuple[type[Tool], ...] = load_tools(names)
        self.timeout_s = timeout_s
        self._tools = {spec.name: spec(options) for spec in self.specs}
        self._statistics = CallStatistics()
        for tool in self._tools.values():
            tool.setup()
        self._pool = ThreadPoolExecutor(num_workers, thread_name_prefix="tool")

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Run one call; see ToolClient. Never raises ToolInfrastructureError."""
        tool = self._tools.get(name)
        if tool is None:
            return failure(*unknown_tool(name, self.specs))
        start = time.perf_counter()
        outcome = await self._run(tool, arguments, context)
        self._statistics.record(name, outcome, time.perf_counter() - start)
        return outcome

    def stats(self) -> dict[str, ToolStats]:
        """Figures per tool so far."""
        return self._statistics.summary()

    def close(self) -> None:
        """Take no more calls; running ones finish on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        future = asyncio.get_running_loop().run_in_executor(self._pool, execute, tool, arguments, context)
        try:
            return await asyncio.wait_for(future, self.timeout_s)
        except TimeoutError:
            return failure(ErrorCode.E5, f"{tool.name} took longer than {self.timeout_s:g} s", self.timeout_s)
