"""A loaded tool with the threads it runs on: bounded parallelism, bounded time, batches as large as the queue is long.

Invariants: at most `num_parallel` calls or batches of the tool compute at once (more would only fight for the
interpreter lock); a batch is made when a slot falls free, of what waits then, so that nobody waits for a batch to fill;
the time-out counts from the moment a call starts, so that nobody is blamed for waiting; a call that exceeds it is
abandoned, because a thread cannot be killed, and counted until it ends; a caller who gives up takes no neighbour along.
Owned by `LocalToolClient` and each Serve replica.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypedDict
from weakref import WeakKeyDictionary

from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.execution import execute_many, failure
from medvista_ray.types import ErrorCode, ToolOutcome

_log = logging.getLogger(__name__)
_NUM_SPARE = 4
"""Threads beyond those that compute: each abandoned call holds one."""
_FIRST_GUESS_S = 0.1
_MEMORY = 0.1
"""Weight of the newest call in the running mean of the time a call takes."""


class HostLoad(TypedDict):
    """How loaded a host is now; what an autoscaler looks at."""

    backlog_s: float
    """Seconds of work that wait."""
    busy: float
    """Share of the slots that compute."""
    service_s: float
    """Seconds that a call takes lately."""


@dataclass(frozen=True)
class _Pending:
    arguments: Mapping[str, Any]
    context: ToolContext
    outcome: asyncio.Future[ToolOutcome]


@dataclass
class _Lane:
    """The calls of one event loop."""

    num_free: int
    waiting: deque[_Pending] = field(default_factory=deque[_Pending])


class ToolHost:
    """Runs one tool's calls. Serves any number of event loops."""

    def __init__(self, tool: Tool, timeout_s: float) -> None:
        self.tool = tool
        self.timeout_s = timeout_s
        self._num_abandoned = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(tool.num_parallel + _NUM_SPARE, thread_name_prefix=tool.name)
        self._lanes: WeakKeyDictionary[asyncio.AbstractEventLoop, _Lane] = WeakKeyDictionary()
        self._batches: set[asyncio.Task[None]] = set()
        self._service_s = _FIRST_GUESS_S

    @property
    def is_stuck(self) -> bool:
        """Whether too many calls hang for the tool to go on at its full width."""
        return self._num_abandoned > _NUM_SPARE

    def load(self) -> HostLoad:
        """The load of this host, over all event loops."""
        lanes, width = list(self._lanes.values()), self.tool.num_parallel
        num_waiting = sum(len(lane.waiting) for lane in lanes)
        num_running = sum(width - lane.num_free for lane in lanes)
        return HostLoad(backlog_s=num_waiting * self._service_s / width, busy=num_running / width, service_s=self._service_s)

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Wait for a slot, run the call, and give up on it after `timeout_s` (E5)."""
        loop = asyncio.get_running_loop()
        lane = self._lanes.setdefault(loop, _Lane(self.tool.num_parallel))
        pending = _Pending(arguments, context, loop.create_future())
        lane.waiting.append(pending)
        self._start(lane)
        return await pending.outcome

    def close(self) -> None:
        """Take no more calls; running ones finish on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _start(self, lane: _Lane) -> None:
        """Fill the free slots from the queue."""
        while lane.num_free and (batch := self._next(lane)):
            lane.num_free -= 1
            task = asyncio.ensure_future(self._run(lane, batch))
            self._batches.add(task)
            task.add_done_callback(self._batches.discard)

    def _next(self, lane: _Lane) -> list[_Pending]:
        """Up to `max_batch` of the longest waiting calls that are still wanted."""
        batch: list[_Pending] = []
        while lane.waiting and len(batch) < self.tool.max_batch:
            pending = lane.waiting.popleft()
            if not pending.outcome.done():
                batch.append(pending)
        return batch

    async def _run(self, lane: _Lane, batch: list[_Pending]) -> None:
        try:
            outcomes = await self._compute(batch)
        except BaseException as error:  # fault boundary: a closed host; whoever waits must be told
            for pending in batch:
                if not pending.outcome.done():
                    pending.outcome.set_exception(error)
            if isinstance(error, asyncio.CancelledError):
                raise
        else:
            for pending, outcome in zip(batch, outcomes, strict=True):
                if not pending.outcome.done():
                    pending.outcome.set_result(outcome)
        finally:
            lane.num_free += 1
            self._start(lane)

    async def _compute(self, batch: list[_Pending]) -> list[ToolOutcome]:
        start = time.perf_counter()
        job = self._pool.submit(execute_many, self.tool, [(pending.arguments, pending.context) for pending in batch])
        try:
            return await asyncio.wait_for(asyncio.wrap_future(job), self.timeout_s)
        except TimeoutError:
            if not job.cancelled():
                self._abandon(job)
            words = f"{self.tool.name} took longer than {self.timeout_s:g} s"
            _log.warning(words)
            return [failure(ErrorCode.E5, words, self.timeout_s)] * len(batch)
        finally:
            self._service_s += _MEMORY * ((time.perf_counter() - start) / len(batch) - self._service_s)

    def _abandon(self, job: Future[list[ToolOutcome]]) -> None:
        def returned(_: Future[list[ToolOutcome]]) -> None:
            with self._lock:
                self._num_abandoned -= 1

        with self._lock:
            self._num_abandoned += 1
        job.add_done_callback(returned)
