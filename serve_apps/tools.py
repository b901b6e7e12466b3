"""The tools of one family as a Ray Serve application: a deployment per tool, reached by handles only.

Invariants: the application has no HTTP route; every replica bounds what it runs (a pool of threads), what it accepts
(`max_ongoing_requests`) and how long a call takes; a health check runs the tool itself; a tool's failure is an
outcome, so that an exception here always means infrastructure. Deployed by `serve_apps.deploy` or `serve deploy`
(configs/serve), called through `serve_apps.tool_client`.

A call comes in one of two ways: through Ray with references to the pictures (`call`), or as one message with their keys and
those pictures that are new here (`call_known`), which takes a quarter of the time; the first serves when the second cannot.

Calls that wait are computed together where the tool can (`Tool.run_many`); `ToolHost` makes the batches and not
`serve.batch`, which would fill one before it knows when a slot falls free, and does not work in-process.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from ray import serve
from ray.serve import Application

from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import load_tools
from medvista_ray.tools.hosting import HostLoad, ToolHost
from medvista_ray.types import MedImage
from serve_apps.args import ToolsAppArgs, deployment_options
from serve_apps.pictures import KeptPictures
from serve_apps.wire import Packed, PackedMask, fits_message, pack_masks, unpack_mask


class ToolReplica:
    """Runs one tool. Serve makes one of these per replica process."""

    def __init__(self, path: str, args: ToolsAppArgs, *siblings: Any) -> None:
        """Load the tool at `path`. `siblings`, the application's other deployments, are ignored: Serve wants one root."""
        del siblings
        (spec,) = load_tools((path,))
        tool = spec(args.options())
        tool.setup()
        self._host = ToolHost(tool, args.limit_s(spec.name))
        self._kept = KeptPictures()
        # Its own thread: a replica that is busy with long calls is healthy. The time-out is Serve's.
        self._health_pool = ThreadPoolExecutor(1, thread_name_prefix="health")

    async def call(
        self,
        arguments: Mapping[str, Any],
        sizes: tuple[int, int],
        image_indices: Sequence[int],
        masks: Mapping[int, PackedMask],
        *images: MedImage,
    ) -> Packed:
        """Run one call on `images`, whose episode indices are `image_indices`, and `masks`.

        `sizes` counts the episode's pictures and masks. The outcome's masks travel packed, beside it.
        """
        for image in images:
            self._kept.keep(image)
        return await self._run(arguments, sizes, dict(zip(image_indices, images, strict=True)), masks)

    async def call_known(
        self,
        arguments: Mapping[str, Any],
        sizes: tuple[int, int],
        keys: Mapping[int, str],
        masks: Mapping[int, PackedMask],
        new: Sequence[MedImage] = (),
    ) -> Packed | None:
        """Run one call on pictures that came before, by their content hashes, or that are `new`.

        None: make it a `call`, because a picture is not here or the outcome does not fit a message.
        """
        for image in new:
            self._kept.keep(image)
        images = self._kept.find(keys)
        if images is None:
            return None
        packed = await self._run(arguments, sizes, images, masks)
        return packed if fits_message(packed) else None

    async def _run(
        self,
        arguments: Mapping[str, Any],
        sizes: tuple[int, int],
        images: Mapping[int, MedImage],
        masks: Mapping[int, PackedMask],
    ) -> Packed:
        unpacked = {index: unpack_mask(mask) for index, mask in masks.items()}
        return pack_masks(await self._host.call(arguments, ToolContext(images, unpacked, *sizes)))

    async def check_health(self) -> None:
        """Run the tool's own probe; raising makes Serve replace the replica."""
        tool = self._host.tool
        if self._host.is_stuck:
            raise RuntimeError(f"{tool.name}: its threads hang in calls that timed out")
        await asyncio.get_running_loop().run_in_executor(self._health_pool, tool.probe)

    async def record_autoscaling_stats(self) -> HostLoad:
        """What `serve_apps.autoscaling` decides on; Serve asks for it every few seconds."""
        return self._host.load()

    async def describe(self) -> dict[str, Any]:
        """Who this replica is, for tests and dashboards."""
        tool = self._host.tool
        return {"tool": tool.name, "family": tool.family, "signature": tool.signature(), "pid": os.getpid()}


def build_tools_app(args: ToolsAppArgs) -> Application:
    """The application; for `serve run serve_apps.tools:build_tools_app family=parse` and configs/serve/*.yaml.

    Raises UnknownNameError for a tool that does not load, ConfigError for one of another family.
    """
    specs = args.specs()
    args.check_keys(specs)
    root, *others = specs
    return _bind(root, args, *(_bind(spec, args) for spec in others))


def _bind(spec: type[Tool], args: ToolsAppArgs, *siblings: Application) -> Application:
    """By import path, so that a replica looks up no entry points."""
    deployment: Any = serve.deployment(ToolReplica, **deployment_options(args, spec.name))
    return deployment.bind(f"{spec.__module__}:{spec.__qualname__}", args, *siblings)
