"""`ServeToolClient`: calls the tool deployments through handles, from any process of the cluster.

Invariants: at most `max_in_flight` calls of a process are out at once; every attempt and every wait is bounded; a
picture is stored once per process (by content hash) and travels by reference; back pressure and dead replicas are
waited for, counted and logged, never scored. A tool is found in its family's application, whose name begins with
`app_name`. One client per process and event loop. Implements `ToolClient`; used by the generator actors and the expert.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle, DeploymentResponse

from medvista_ray.errors import ToolInfrastructureError
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import load_tools, unknown_tool
from medvista_ray.tools.execution import check, failure
from medvista_ray.tools.statistics import CallStatistics, ToolStats
from medvista_ray.types import MedImage, ToolOutcome
from serve_apps.args import application_name
from serve_apps.wire import pack_mask, unpack_masks

_log = logging.getLogger(__name__)
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 8.0


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
        self._handles: dict[str, DeploymentHandle[Any]] = {}
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
        """End the handles' threads, which would go on to report figures to a controller that may be gone."""
        while self._handles:
            self._handles.popitem()[1].shutdown()

    async def _reach(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        async with self._slots:
            num_retries = 0
            while True:
                try:
                    attempt = self._attempt(name, arguments, context)
                    outcome = await asyncio.wait_for(attempt, self._limits_s[name])
                    return replace(outcome, num_retries=num_retries)
                except (RayError, RayServeException, TimeoutError) as error:  # fault boundary: infrastructure
                    self._note(name, error, context)
                    if num_retries == self.num_retries:
                        words = f"tool {name!r} of application {self._application(name)!r}: {num_retries + 1} attempts failed"
                        raise ToolInfrastructureError(f"{words}; {_first_line(error)}") from error
                await asyncio.sleep(_pause_s(num_retries))
                num_retries += 1

    async def _attempt(self, name: str, arguments: Mapping[str, Any], context: ToolContext) -> ToolOutcome:
        """One attempt; back pressure is waited out here and does not count as a retry."""
        for num_waits in range(1 << 30):
            try:
                handle = await self._handle(name)
                outcome, masks = await _result(self._send(handle, arguments, context))
                return unpack_masks(outcome, masks)
            except BackPressureError:
                self.num_back_pressure += 1
                await asyncio.sleep(_pause_s(min(num_waits, 3)) * 0.2)
        raise AssertionError("unreachable: the caller's time-out ends the loop")

    def _send(self, handle: DeploymentHandle[Any], arguments: Mapping[str, Any], context: ToolContext) -> Any:
        sizes = context.num_images, context.num_masks
        masks = {index: pack_mask(mask) for index, mask in context.masks.items()}
        images = [self._images.ref(image) for image in context.images.values()]
        return handle.remote(dict(arguments), sizes, list(context.images), masks, *images)

    async def _handle(self, name: str) -> DeploymentHandle[Any]:
        """One handle per tool: each keeps a long-poll client, so making many leaks."""
        if name not in self._handles:
            try:
                # In a thread: it asks the controller and would block the event loop.
                handle = await asyncio.to_thread(serve.get_deployment_handle, name, self._application(name))
            except KeyError as error:
                words = f"application {self._application(name)!r} serves no tool {name!r}; deploy it first"
                raise ToolInfrastructureError(words) from error
            self._handles.setdefault(name, handle.options(method_name="call"))
        return self._handles[name]

    def _application(self, name: str) -> str:
        return application_name(self.app_name, self._specs[name].family)

    def _note(self, name: str, error: Exception, context: ToolContext) -> None:
        self.failures[type(error).__name__] += 1
        self._images.forget(context.images.values())  # the store may have lost them
        _log.warning("tool %s: %s", name, _first_line(error))


class ImageRefs:
    """References to stored pictures by content hash, the least recently used forgotten first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._refs: OrderedDict[str, tuple[ray.ObjectRef[MedImage], int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._refs)

    def ref(self, image: MedImage) -> ray.ObjectRef[MedImage]:
        """A reference to `image`; it is stored if no equal picture is."""
        key = image.key  # computed before it is stored, so that the hash travels along
        if key not in self._refs:
            self._refs[key] = (ray.put(image), image.pixels.nbytes)
            self._num_bytes += image.pixels.nbytes
        self._refs.move_to_end(key)
        while self._num_bytes > self._max_bytes and len(self._refs) > 1:
            self._num_bytes -= self._refs.popitem(last=False)[1][1]
        return self._refs[key][0]

    def forget(self, images: Iterable[MedImage]) -> None:
        """Store these anew next time."""
        for image in images:
            entry = self._refs.pop(image.key, None)
            self._num_bytes -= entry[1] if entry else 0


async def _result(response: DeploymentResponse[Any]) -> Any:
    """Await a response; if the waiting is given up, so is the request."""
    try:
        return await response
    except asyncio.CancelledError:
        response.cancel()
        raise


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _pause_s(num_failures: int) -> float:
    """Exponential back-off with jitter."""
    return min(_FIRST_PAUSE_S * 2**num_failures, _LONGEST_PAUSE_S) * random.uniform(0.5, 1.5)
