"""One call of one loaded tool, with every way it can go wrong turned into an outcome.

Invariants: nothing here raises; what becomes of a call does not depend on the batch that it is in. This is the fault
boundary between a tool's code and an episode; `LocalToolClient` and the Serve replicas both run calls through it, so that
they agree.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from medvista_ray.errors import ToolArgumentError
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.validation import Refusal, parse_arguments
from medvista_ray.types import ErrorCode, ToolOutcome, ToolResult

_log = logging.getLogger(__name__)


def failure(code: ErrorCode, message: str, latency_s: float = 0.0) -> ToolOutcome:
    """An outcome without a result."""
    return ToolOutcome(result=None, error=code, message=message, latency_s=latency_s)


def check(spec: type[Tool], arguments: Mapping[str, Any], context: ToolContext) -> tuple[BaseModel, ToolContext] | ToolOutcome:
    """Parsed arguments and the part of the context that they name, or the refusal (E2, E3, E4)."""
    args = parse_arguments(spec.Args, arguments)
    if isinstance(args, Refusal):
        return failure(args.code, args.message)
    try:
        return args, context.needed_by(args)
    except ToolArgumentError as error:
        return failure(ErrorCode.E4, str(error))


def execute(tool: Tool, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
    """Check the arguments, run the tool (E4, E5) and check what it gave (E5)."""
    checked = check(type(tool), arguments, context)
    if isinstance(checked, ToolOutcome):
        return checked
    start = time.perf_counter()
    try:
        result = tool.run(*checked)
    except ToolArgumentError as error:
        return failure(ErrorCode.E4, str(error), time.perf_counter() - start)
    except Exception as error:  # fault boundary: a tool's bug is an observation, never a crash
        _log.exception("tool %s failed", tool.name)
        fault = f"{type(error).__name__}: {error}"
        return failure(ErrorCode.E5, f"{tool.name} failed: {fault}", time.perf_counter() - start)
    return _outcome(tool, result, checked[1], time.perf_counter() - start)


def execute_many(tool: Tool, calls: Sequence[tuple[Mapping[str, Any], ToolContext]]) -> list[ToolOutcome]:
    """`execute` for each call, computed together where the tool can; each is charged its share of the time."""
    checked = [check(type(tool), *call) for call in calls]
    valid = [one for one in checked if not isinstance(one, ToolOutcome)]
    if tool.max_batch == 1 or len(valid) < 2:
        return [execute(tool, *call) for call in calls]
    start = time.perf_counter()
    try:
        results = tool.run_many(valid)
        if len(results) != len(valid):
            raise ValueError(f"{len(results)} results for {len(valid)} calls")
    except Exception as error:  # fault boundary: one bad call must not spoil its neighbours, so each runs alone
        if not isinstance(error, ToolArgumentError):
            _log.warning("tool %s failed on a batch of %d: %r", tool.name, len(valid), error)
        return [execute(tool, *call) for call in calls]
    latency_s = (time.perf_counter() - start) / len(valid)
    given = iter(results)
    return [one if isinstance(one, ToolOutcome) else _outcome(tool, next(given), one[1], latency_s) for one in checked]


def _outcome(tool: Tool, result: ToolResult, context: ToolContext, latency_s: float) -> ToolOutcome:
    fault = _fault(result, context)
    if fault:
        _log.error("tool %s gave an ill-formed result: %s", tool.name, fault)
        return failure(ErrorCode.E5, f"{tool.name} failed: {fault}", latency_s)
    return ToolOutcome(result=result, latency_s=latency_s)


def _fault(result: Any, context: ToolContext) -> str:
    """What is ill-formed in a tool's output; "" if nothing."""
    if not isinstance(result, ToolResult) or not result.text:
        return "no text"
    for mask in result.masks:
        image = context.images.get(mask.image_index)
        if image is None or mask.pixels.shape != image.size or mask.pixels.dtype != bool:
            return "a mask that fits no image"
    return ""
