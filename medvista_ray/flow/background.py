"""Tasks that run beside the main coroutine, none of whose errors is lost.

Invariant: the first error of any background task reaches the main coroutine through `raise_error`, and `close` leaves
no task behind. Called by `flow.loop` and `flow.fleet`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Background:
    """A set of tasks with one place for their first error. `on_error` is called when there is one."""

    def __init__(self, on_error: Callable[[], None]) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._error: BaseException | None = None
        self._on_error = on_error

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run `work` beside the caller, who may wait for it."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def raise_error(self) -> None:
        """Raise the first error of a task, if there was one."""
        if self._error is not None:
            raise self._error

    async def close(self) -> None:
        """Cancel what still runs and wait for its end."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._error = self._error or error
            self._on_error()
