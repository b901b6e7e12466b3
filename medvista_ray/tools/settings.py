"""What a run or a Serve application sets about tools: which, with what behind them, within which bounds.

Invariant: a job's section `tools` (`ToolsConfig`) and a standing application's arguments (`serve_apps.args`) share these
fields, so that a tool is served alike by both. Part of `medvista_ray.config`; imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from medvista_ray.errors import UnknownNameError, did_you_mean
from medvista_ray.tools.base import BackendChoice, Tool, ToolOptions
from medvista_ray.tools.catalog import TOOLS

Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0)]
"""Of a resource; 0.25 is a quarter of a device."""


class ToolScaling(BaseModel):
    """Replicas by the work that waits; see serve_apps.autoscaling for the rule."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    min_replicas: Annotated[int, Field(ge=0)] = 1
    """Replicas that stay; 0 lets an idle tool go, its next call then waits for a start."""
    max_replicas: Positive = 4
    """Replicas at most."""
    target_wait_s: Seconds = 0.5
    """Seconds of work that may wait at each replica before another one is started."""
    max_busy: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of its time that a replica may compute before another one is started."""
    upscale_delay_s: Annotated[float, Field(ge=0)] = 3.0
    """The need must last this long before replicas are added."""
    downscale_delay_s: Annotated[float, Field(ge=0)] = 60.0
    """...and this long before they are taken away; weights load slowly, so longer on a GPU."""
    interval_s: Seconds = 2.0
    """Time between two reports of a replica; decisions look back over five of them."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_replicas > self.max_replicas:
            raise ValueError(f"min_replicas = {self.min_replicas}: at most max_replicas ({self.max_replicas}) needed")
        return self


class ToolServing(BaseModel):
    """How tools are served. The mappings are by tool name and override what holds for all tools."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    names: tuple[str, ...] = ()
    """Registered tool names or "module:Class"."""
    backends: dict[str, BackendChoice] = Field(default_factory=dict[str, BackendChoice])
    """What computes instead of a tool's default: {tool: {name, weights, device}}."""
    timeout_s: Seconds = 30.0
    """Bound on one call, from its start in a replica; queueing and retries are not counted."""
    tool_timeout_s: dict[str, Seconds] = Field(default_factory=dict[str, float])
    """Bounds of single tools."""
    max_ongoing: Positive = 128
    """Calls a replica accepts; what it computes at once is the tool's `num_parallel`. Keep it above what callers have
    in flight: Serve's router backs off from a full replica (16 gave a quarter of the throughput at 64 in flight)."""
    max_queued: Positive = 256
    """Calls waiting per caller before back pressure."""
    num_replicas: Positive = 1
    """Replicas of each tool, if `scaling` is not set."""
    scaling: ToolScaling | None = None
    """Replicas by queue depth instead."""
    num_cpus: Share = 0.0
    """Ray CPUs that each replica reserves. 0: replicas share what others leave."""
    num_gpus: dict[str, Share] = Field(default_factory=dict[str, float])
    """GPUs, or shares of one, that each replica of a tool reserves. Ray only counts them: shares of one device must
    fit its memory."""
    num_threads: Positive = 1
    """CPU threads of one replica's neural net."""
    precision: Literal["float32", "bfloat16"] | None = None
    """Arithmetic of the neural nets; None takes the fastest that the processor has in hardware."""
    embedding_cache_mib: Positive = 1024
    """Bound of the image-embedding cache of one replica, in MiB."""
    disk_cache_mib: Annotated[int, Field(ge=0)] = 2048
    """Bound of the image embeddings kept on disk, in MiB."""

    def options(self) -> ToolOptions:
        """What a tool is granted."""
        return ToolOptions(
            num_threads=self.num_threads,
            precision=self.precision,
            embedding_cache_mib=self.embedding_cache_mib,
            disk_cache_mib=self.disk_cache_mib,
            backends=self.backends,
        )

    def limit_s(self, tool: str) -> float:
        """The time-out of one tool."""
        return self.tool_timeout_s.get(tool, self.timeout_s)

    def check_keys(self, specs: Iterable[type[Tool]]) -> None:
        """Raises UnknownNameError if a mapping names a tool that is neither registered nor among `specs`."""
        known = {*TOOLS.names(), *(spec.name for spec in specs)}
        mappings = {"backends": self.backends, "tool_timeout_s": self.tool_timeout_s, "num_gpus": self.num_gpus}
        for field, mapping in mappings.items():
            for name in set(mapping) - known:
                raise UnknownNameError(f"tools.{field}: unknown tool {name!r}; {did_you_mean(name, known)}")


class ToolsConfig(ToolServing):
    """Which tools are on offer and how they are served."""

    names: tuple[str, ...] = ("zoom_in", "segment_medical", "measure", "search_text")
    """Registered tool names or "module:Class"."""
    app_name: str = "medvista-tools"
    """Names of the Ray Serve applications begin with this; each family has its own."""
    num_retries: Annotated[int, Field(ge=0)] = 3
    """Retries of an infrastructure failure before the episode counts as failed."""
