"""Real tools made for tests: one sleeps and tells its process, so that calls can be caught in flight; one computes batches."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import ClassVar

from medvista_ray.errors import ToolArgumentError
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


BATCHES: list[list[int]] = []
"""What BatchTool computed together, in this process."""


class BatchArgs(ToolArgs):
    """Arguments of BatchTool."""

    value: int


class BatchTool(Tool):
    """Squares numbers, several at once; refuses negative ones."""

    name: ClassVar[str] = "batch"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "square."
    Args = BatchArgs
    max_batch = 4

    def run(self, args: BatchArgs, context: ToolContext) -> ToolResult:
        """One number."""
        if args.value < 0:
            raise ToolArgumentError(f"{args.value} is negative")
        return ToolResult(text=str(args.value**2))

    def run_many(self, calls: Sequence[tuple[BatchArgs, ToolContext]]) -> list[ToolResult]:
        """Several numbers."""
        BATCHES.append([args.value for args, _ in calls])
        return super().run_many(calls)
