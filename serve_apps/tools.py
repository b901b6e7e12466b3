"""The tools as one Ray Serve application: a deployment per tool, reached by handles only, and its typed arguments.

Invariants: the application has no HTTP route; every replica bounds what it runs (a pool of threads), what it accepts
(`max_ongoing_requests`) and how long a call takes; a health check runs the tool itself; a tool's failure is an outcome,
so that an exception here always means infrastructure. Deployed by `serve_apps.deploy`, called through
`serve_apps.tool_client`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application

from medvista_ray.tools.base import ToolContext, ToolOptions
from medvista_ray.tools.catalog import load_tools
from medvista_ray.tools.hosting import ToolHost
from medvista_ray.types import MedImage, ToolOutcome
from serve_apps.wire import PackedMask, pack_masks, unpack_mask

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]


class ToolsAppArgs(BaseModel):
    """Arguments of the application; unknown keys are refused (Serve reports them as DEPLOY_FAILED)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    names: tuple[str, ...] = ("zoom_in", "segment_medical", "measure", "search_text")
    """Registered tool names or "module:Class"."""
    timeout_s: Seconds = 30.0
    """Bound on one call inside a replica, from its start."""
    tool_timeout_s: dict[str, Seconds] = Field(default_factory=dict[str, float])
    """Bounds of single tools, by name."""
    max_ongoing: Positive = 128
    """Calls a replica accepts; what it computes at once is the tool's `num_parallel`. Keep it above what callers have
    in flight: Serve's router backs off from a full replica (16 gave a quarter of the throughput at 64 in flight).
    """
    max_queued: Positive = 256
    """Calls waiting per caller before back pressure."""
    num_replicas: Positive = 1
    """Replicas of each tool."""
    num_threads: Positive = 1
    """CPU threads of one replica's neural net."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the neural nets; None takes the fastest that the processor has in hardware."""
    embedding_cache_mib: Positive = 1024
    """Bound of the image-embedding cache of one replica, in MiB."""
    disk_cache_mib: Annotated[int, Field(ge=0)] = 2048
    """Bound of the image embeddings kept on disk, in MiB."""
    num_cpus: Annotated[float, Field(ge=0)] = 0.0
    """Ray CPUs that each replica reserves. 0: replicas share what the generators leave."""
    health_check_period_s: Seconds = 10.0
    """Time between two health checks of a replica."""
    health_check_timeout_s: Seconds = 30.0
    """A replica that takes longer to answer one is replaced."""


class ToolReplica:
    """Runs one tool. Serve makes one of these per replica process."""

    def __init__(self, name: str, args: ToolsAppArgs, *siblings: Any) -> None:
        """Load the tool. `siblings`, the application's other deployments, are ignored: Serve wants one root."""
        del siblings
        (spec,) = load_tools((name,))
        options = ToolOptions(
            num_threads=args.num_threads,
            precision=args.precision,
            embedding_cache_mib=args.embedding_cache_mib,
            disk_cache_mib=args.disk_cache_mib,
        )
        tool = spec(options)
        tool.setup()
        self._host = ToolHost(tool, args.tool_timeout_s.get(spec.name, args.timeout_s))
        # Its own thread: a replica that is busy with long calls is healthy. The time-out is Serve's.
        self._health_pool = ThreadPoolExecutor(1, thread_name_prefix="health")

    async def call(
        self,
        arguments: Mapping[str, Any],
        sizes: tuple[int, int],
        image_indices: Sequence[int],
        masks: Mapping[int, PackedMask],
        *images: MedImage,
    ) -> tuple[ToolOutcome, tuple[PackedMask, ...]]:
        """Run one call on `images`, whose episode indices are `image_indices`, and `masks`.

        `sizes` counts the episode's pictures and masks. The outcome's masks travel packed, beside it.
        """
        unpacked = {index: unpack_mask(mask) for index, mask in masks.items()}
        context = ToolContext(dict(zip(image_indices, images, strict=True)), unpacked, *sizes)
        return pack_masks(await self._host.call(arguments, context))

    async def check_health(self) -> None:
        """Run the tool's own probe; raising makes Serve replace the replica."""
        tool = self._host.tool
        if self._host.is_stuck:
            raise RuntimeError(f"{tool.name}: its threads hang in calls that timed out")
        await asyncio.get_running_loop().run_in_executor(self._health_pool, tool.probe)

    async def describe(self) -> dict[str, Any]:
        """Who this replica is, for tests and dashboards."""
        return {"tool": self._host.tool.name, "signature": self._host.tool.signature(), "pid": os.getpid()}


def build_tools_app(args: ToolsAppArgs) -> Application:
    """The application; for `serve run serve_apps.tools:build_tools_app names='[...]'` and configs/serve/tools_cpu.yaml.

    Raises UnknownNameError for a tool that does not load.
    """
    specs = load_tools(args.names)
    siblings = [_bind(path, spec.name, args) for path, spec in zip(args.names[1:], specs[1:], strict=True)]
    return _bind(args.names[0], specs[0].name, args, *siblings)


def _bind(path: str, name: str, args: ToolsAppArgs, *siblings: Application) -> Application:
    deployment: Any = serve.deployment(
        ToolReplica,
        name=name,
        num_replicas=args.num_replicas,
        max_ongoing_requests=args.max_ongoing,
        max_queued_requests=args.max_queued,
        health_check_period_s=args.health_check_period_s,
        health_check_timeout_s=args.health_check_timeout_s,
        graceful_shutdown_timeout_s=5.0,
        ray_actor_options={"num_cpus": args.num_cpus},
        max_constructor_retry_count=2,
    )
    return deployment.bind(path, args, *siblings)
