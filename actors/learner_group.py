"""The front of a learner of several processes: it has its peers do their part of every call.

Invariants: every call goes to all processes, in the same order; once a process is gone, or out of step with the others,
every call fails at once, naming it, instead of waiting for it. Called by the learner actor.
"""

from __future__ import annotations

import concurrent.futures as futures
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import ray
from ray.exceptions import RayActorError
from ray.util import get_node_ip_address

from actors.handles import Handle
from medvista_ray.errors import LearnerGroupError
from trainers.processes import Store, end_group, open_store

Result = TypeVar("Result")

POLL_S = 0.5
GRACE_S = 10.0
"""For the other processes, once one has failed: a fault of the batch shows in all of them."""
CLOSE_TIMEOUT_S = 5.0


class LearnerGroup:
    """The front's side. Without peers (a learner of one process, or a peer itself) it only calls."""

    def __init__(self, peers: Sequence[Handle]) -> None:
        self._peers = list(peers)
        self._broken = ""

    def gather(self, join: Callable[[Store, int], None]) -> None:
        """Have all processes meet here; `join` is this one's part. Raises LearnerGroupError if one does not come."""
        if not self._peers:
            return
        address = get_node_ip_address()
        store, port = open_store(address)
        calls = [peer.join.remote(address, port, rank) for rank, peer in enumerate(self._peers, start=1)]
        self._together("join", lambda: join(store, 0), calls)

    def call(self, method: str, own: Callable[[], Result], *arguments: Any) -> Result:
        """Call `method` of every peer with `arguments` while this process does `own`; what `own` returns.

        Raises what `own` raises if all processes came to an end, else LearnerGroupError.
        """
        if not self._peers:
            return own()
        if self._broken:
            raise LearnerGroupError(self._broken)
        stored = [ray.put(argument) for argument in arguments]  # once, not once per peer
        return self._together(method, own, [getattr(peer, method).remote(*stored) for peer in self._peers])

    def close(self) -> None:
        """End the process group here and in the peers, as far as they still answer."""
        goodbyes = [peer.close.remote() for peer in self._peers]
        if not self._broken:  # else this process may hang in the group, which ends with it
            end_group()
        if goodbyes:
            ray.wait(goodbyes, num_returns=len(goodbyes), timeout=CLOSE_TIMEOUT_S)

    def _together(self, method: str, own: Callable[[], Result], calls: list[Any]) -> Result:
        """`own` in a thread, so that this one sees what becomes of the peers while it hangs in a collective."""
        mine = _in_thread(own)
        running = {ref: rank for rank, ref in enumerate(calls, start=1)}
        failed: dict[int, BaseException] = {}
        until_s = float("inf")
        while (running or not mine.done()) and time.monotonic() < until_s:
            for ref in _next_done(running, mine):
                rank = running.pop(ref)
                try:
                    ray.get(ref)
                except Exception as error:  # fault boundary: whatever a peer raised is told by its rank
                    failed[rank] = error
                    until_s = 0.0 if isinstance(error, RayActorError) else min(until_s, time.monotonic() + GRACE_S)
            if mine.done() and mine.exception():
                until_s = min(until_s, time.monotonic() + GRACE_S)
        return self._verdict(method, mine, failed, bool(running))

    def _verdict(self, method: str, mine: futures.Future[Result], failed: dict[int, BaseException], is_running: bool) -> Result:
        error = mine.exception() if mine.done() else None
        gone = {rank: error for rank, error in failed.items() if isinstance(error, RayActorError)}
        if mine.done() and not gone and not is_running and (error or not failed):
            return mine.result()
        rank, cause = next(iter((gone or failed).items()), (0, error))
        what = "is gone" if gone else f"failed ({_describe(cause)})"
        self._broken = (
            f"process {rank} of the learner's {len(self._peers) + 1} {what} in {method}; the others cannot go on without it: "
            "resume the run from its last checkpoint"
        )
        raise LearnerGroupError(self._broken) from cause


def _in_thread(work: Callable[[], Result]) -> futures.Future[Result]:
    """What `work` returns or raises. The thread never keeps the process alive."""
    future: futures.Future[Result] = futures.Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # fault boundary: the caller raises it
            future.set_exception(error)

    threading.Thread(target=run, name="learner-own-part", daemon=True).start()
    return future


def _next_done(running: dict[Any, int], mine: futures.Future[Any]) -> list[Any]:
    """References that are ready, after a wait of at most POLL_S for the next thing to happen."""
    if running:
        return ray.wait(list(running), timeout=POLL_S)[0]
    futures.wait([mine], timeout=POLL_S)
    return []


def _describe(error: BaseException | None) -> str:
    cause = getattr(error, "cause", None) or error  # Ray's wrapper carries the other process's stack
    return f"{type(cause).__name__}: {cause}"
