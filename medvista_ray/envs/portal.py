"""The async core for synchronous callers (Gymnasium, SkyRL-Gym, TRL): one event loop in one background thread.

Invariant: works whether or not the caller's own thread runs an event loop (a notebook does). Called by the facades.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Coroutine
from functools import cache
from typing import Any, TypeVar

T = TypeVar("T")


def wait_for(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run `coroutine` on the background loop and return its result, or raise what it raised."""
    return asyncio.run_coroutine_threadsafe(coroutine, _loop(os.getpid())).result()


@cache
def _loop(_process: int) -> asyncio.AbstractEventLoop:
    """By process: a fork (Gymnasium's AsyncVectorEnv) inherits the loop but not its thread."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="medvista-envs", daemon=True).start()
    return loop
