"""Real tools made for tests: one that sleeps and tells its process, so that calls can be caught in flight."""

from __future__ import annotations

import os
import time
from typing import ClassVar

from medvista_ray.tools.base import Family, Tool, ToolArgs, ToolContext
from medvista_ray.types import ToolResult


class SleepArgs(ToolArgs):
    """Arguments of SleepTool."""

    seconds: float
    item: int = 0


class SleepTool(Tool):
    """Sleeps, then says which call it was and in which process it ran."""

    name: ClassVar[str] = "sleep"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "sleep."
    Args = SleepArgs
    num_parallel: ClassVar[int] = 4

    def run(self, args: SleepArgs, context: ToolContext) -> ToolResult:
        """Sleep."""
        time.sleep(args.seconds)
        return ToolResult(text=f"item {args.item}", data={"pid": os.getpid(), "item": args.item})
