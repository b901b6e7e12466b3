"""`ServeToolClient`: calls the tool deployments through handles, from any process of the cluster.

Invariants: at most `max_in_flight` calls of a process are out at once; every attempt and every wait is bounded; a
picture travels once per tool and then by its content hash; back pressure and dead replicas are waited for, counted and
logged, never scored. A tool is found in its family's application, whose name begins
with `app_name`. One client per process and event loop. Implements `ToolClient`; used by the generator actors and the expert.

A call goes as one gRPC message with the pictures' keys, those new to the tool along, answered by one message: the way through
Ray's objects takes three trips (accepted, answer, fetch) and four times as long. That way, with pictures stored once per
process, remains for what a message cannot carry, for a replica that lacks a picture, and for every retry. The handles'
routers run on the caller's event loop: on Serve's own thread, every call would change threads twice on its way.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import grpc
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from medvista_ray.errors import ToolInfrastructureError
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import load_tools, unknown_tool
from medvista_ray.tools.execution import check, failure
from medvista_ray.tools.statistics import CallStatistics, ToolStats
from medvista_ray.types import ToolOutcome
from serve_apps.args import application_name
from serve_apps.pictures import ImageRefs, num_bytes
from serve_apps.wire import MAX_MESSAGE_BYTES, Packed, PackedMask, pack_mask, unpack_masks

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True)
class _Ways:
    """One tool's handle, twice: for `ToolReplica.call_known` and for `ToolReplica.call`; they share a router."""

    message: DeploymentHandle[Any]
    reference: DeploymentHandle[Any]
    loop: asyncio.AbstractEventLoop
    """Where the router runs."""


class ServeToolClient:
    """See the module. `timeout_s` (`tool_timeout_s` of single tools) is the tools' own bound; a call may wait `queue_s`
    in queues on top of it."""

    def __init__(
        self,
        app_name: str,
        names: Iterable[str],
        timeout_s: float = 30.0,
        num_retries: int = 3,
        queue_s: float = 120.0,
        max_in_flight: int = 64,
        image_cache_mib: int = 256,
        tool_timeout_s: Mapping[str, float] | None = None,
    ) -> None:
        self.specs: tuple[type[Tool], ...] = load_tools(names)
        self.app_name = app_name
        self.num_retries = num_retries
        self.num_back_pressure = 0
        """Waits because every replica's queue was full."""
        self.failures: Counter[str] = Counter()
        """Infrastructure failures by kind; each was retried or raised."""
        self._specs = {spec.name: spec for spec in self.specs}
        self._limits_s = {spec.name: (tool_timeout_s or {}).get(spec.name, timeout_s) + queue_s for spec in self.specs}
        self._slots = asyncio.Semaphore(max_in_flight)
        self._handles: dict[str, _Ways] = {}
        self._connecting = asyncio.Lock()
        self._ending: list[asyncio.Task[None]] = []
        self._images = ImageRefs(image_cache_mib << 20)
        self._statistics = CallStatistics()

    async def call(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """Run one call; see ToolClient. Raises ToolInfrastructureError after `num_retries` retries."""
        spec = self._specs.get(name)
        if spec is None:
            return failure(*unknown_tool(name, self.specs))
        start = time.perf_counter()
        checked = check(spec, arguments, context)
        outcome = checked if isinstance(checked, ToolOutcome) else await self._reach(name, arguments, checked[1])
        self._statistics.record(name, outcome, time.perf_counter() - start)
        return outcome

    def stats(self) -> dict[str, ToolStats]:
        """Figures per tool so far, as this process saw them."""
        return self._statistics.summary()

    def close(self) -> None:
        """End the handles' routers, which would go on to report figures to a controller that may be gone.

        On the loop that the calls ran on; once that is closed, it has ended them itself.
        """
        ways, self._handles = list(self._handles.values()), {}
        if ways and ways[0].loop.is_running():
            self._ending += [way.loop.create_task(way.reference.shutdown_async()) for way in ways]

    async def _reach(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        async with self._slots:
            num_retries = 0
            while True:
                try:
                    async with asyncio.timeout(self._limits_s[name]):
                        outcome = await self._attempt(name, arguments, context, is_retry=num_retries > 0)
                    return replace(outcome, num_retries=num_retries)
                except (RayError, RayServeException, grpc.RpcError, TimeoutError) as error:  # fault boundary: infrastructure
                    self._note(name, error, context)
                    if num_retries == self.num_retries:
                        words = f"tool {name!r} of application {self._application(name)!r}: {num_retries + 1} attempts failed"
                        raise ToolInfrastructureError(f"{words}; {_first_line(error)}") from error
                await asyncio.sleep(_pause_s(num_retries))
                num_retries += 1

    async def _attempt(self, name: str, arguments: Mapping[str, Any], context: ToolContext, is_retry: bool) -> ToolOutcome:
        """One attempt; back pressure is waited out here and does not count as a retry."""
        for num_waits in range(1 << 30):
            try:
                ways = await self._handle(name)
                packed = None if is_retry else await self._by_message(ways, name, arguments, context)
                return unpack_masks(*(packed or await self._by_reference(ways, name, arguments, context)))
            except BackPressureError:
                self.num_back_pressure += 1
                await asyncio.sleep(_pause_s(min(num_waits, 3)) * 0.2)
        raise AssertionError("unreachable: the caller's time-out ends the loop")

    async def _by_message(self, ways: _Ways, name: str, arguments: Mapping[str, Any], context: ToolContext) -> Packed | None:
        """None if that way does not do: the pictures are too large, the outcome is, or the replica lacks one."""
        new = self._images.unknown_to(name, context.images.values())
        if sum(map(num_bytes, new)) > MAX_MESSAGE_BYTES:
            return None
        keys = {index: image.key for index, image in context.images.items()}
        packed = await _result(ways.message.remote(dict(arguments), _sizes(context), keys, _masks(context), new))
        self._images.sent(name, new)
        return packed

    async def _by_reference(self, ways: _Ways, name: str, arguments: Mapping[str, Any], context: ToolContext) -> Packed:
        images = [self._images.ref(image) for image in context.images.values()]
        response = ways.reference.remote(dict(arguments), _sizes(context), list(context.images), _masks(context), *images)
        packed = await _result(response)
        self._images.sent(name, context.images.values())
        return packed

    async def _handle(self, name: str) -> _Ways:
        """One handle per tool: each keeps a long-poll client, so making many leaks."""
        if name not in self._handles:
            async with self._connecting:
                if name not in self._handles:
                    self._handles[name] = await self._connect(name)
        return self._handles[name]

    async def _connect(self, name: str) -> _Ways:
        application = self._application(name)
        try:
            # In a thread: it asks the controller and would block the event loop.
            await asyncio.to_thread(serve.get_deployment_handle, name, application)
        except KeyError as error:
            words = f"application {application!r} serves no tool {name!r}; deploy it first"
            raise ToolInfrastructureError(words) from error
        handle: DeploymentHandle[Any] = DeploymentHandle(name, application)  # Serve's is shared by all loops of the process
        handle._init(_run_router_in_separate_loop=False)  # pyright: ignore[reportPrivateUsage]  # no public way
        message = handle.options(
            method_name="call_known", _by_reference=False, request_serialization="pickle", response_serialization="pickle"
        )
        reference = handle.options(method_name="call", _by_reference=True)
        return _Ways(message, reference, asyncio.get_running_loop())

    def _application(self, name: str) -> str:
        return application_name(self.app_name, self._specs[name].family)

    def _note(self, name: str, error: Exception, context: ToolContext) -> None:
        self.failures[type(error).__name__] += 1
        self._images.forget(context.images.values())  # the store may have lost them
        _log.warning("tool %s: %s", name, _first_line(error))


def _sizes(context: ToolContext) -> tuple[int, int]:
    return context.num_images, context.num_masks


def _masks(context: ToolContext) -> dict[int, PackedMask]:
    return {index: pack_mask(mask) for index, mask in context.masks.items()}


async def _result(response: Any) -> Any:
    """Await a DeploymentResponse; if the waiting is given up, so is the request.

    A replica that is taken away cancels what it runs, and Serve would show that as the cancellation of whoever waits.
    """
    task = asyncio.current_task()
    try:
        return await response
    except asyncio.CancelledError as error:
        if task is not None and not task.cancelling():
            raise RayServeException("the replica gave the call up") from error
        response.cancel()
        raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _pause_s(num_failures: int) -> float:
    """Exponential back-off with jitter."""
    return min(_FIRST_PAUSE_S * 2**num_failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
