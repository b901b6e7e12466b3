"""A loaded tool with the threads it runs on: bounded parallelism, bounded time.

Invariants: at most `num_parallel` calls of the tool compute at once (more would only fight for the interpreter lock);
the time-out counts from the moment a call starts, so that nobody is blamed for waiting; a call that exceeds it is
abandoned, because a thread cannot be killed, and counted until it ends. Owned by `LocalToolClient` and each Serve
replica.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any
from weakref import WeakKeyDictionary

from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.execution import execute, failure
from medvista_ray.types import ErrorCode, ToolOutcome

_log = logging.getLogger(__name__)
_NUM_SPARE = 4
"""Threads beyond those that compute: each abandoned call holds one."""


class ToolHost:
    """Runs one tool's calls. Serves any number of event loops."""

    def __init__(self, tool: Tool, timeout_s: float) -> None:
        self.tool = tool
        self.timeout_s = timeout_s
        self._num_threads = tool.num_parallel + _NUM_SPARE
        self._num_abandoned = 0
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(self._num_threads, thread_name_prefix=tool.name)
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = WeakKeyDictionary()

    @property
    def is_stuck(self) -> bool:
        """Whether too many calls hang for the tool to go on at its full width."""
        return self._num_abandoned > _NUM_SPARE

    async def call(self, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Wait for a slot, run the call, and give up on it after `timeout_s` (E5)."""
        loop = asyncio.get_running_loop()
        async with self._slots.setdefault(loop, asyncio.Semaphore(self.tool.num_parallel)):
            job = self._pool.submit(execute, self.tool, arguments, context)
            try:
                return await asyncio.wait_for(asyncio.wrap_future(job), self.timeout_s)
            except TimeoutError:
                if not job.cancelled():
                    self._abandon(job)
                words = f"{self.tool.name} took longer than {self.timeout_s:g} s"
                _log.warning(words)
                return failure(ErrorCode.E5, words, self.timeout_s)

    def close(self) -> None:
        """Take no more calls; running ones finish on their own."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _abandon(self, job: Future[ToolOutcome]) -> None:
        def returned(_: Future[ToolOutcome]) -> None:
            with self._lock:
                self._num_abandoned -= 1

        with self._lock:
            self._num_abandoned += 1
        job.add_done_callback(returned)
