"""The arguments of a family's application, and how they become options of Ray Serve.

Owns `ToolsAppArgs`, `application_name` and `deployment_options`. Invariant: a typo is refused before anything starts
(Serve shows pydantic's words as DEPLOY_FAILED). Called by `serve_apps.tools`, `serve_apps.deploy` and the client.
"""

from __future__ import annotations

import warnings
from typing import Any

import ray
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy

from medvista_ray.allocator import allocator_environment
from medvista_ray.errors import ConfigError
from medvista_ray.tools.base import Family, Tool
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.tools.settings import Seconds, ToolScaling, ToolsConfig, ToolServing
from serve_apps.autoscaling import POLICY

_DRAIN_S = 5.0
_SAME_LOOP = {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"}
"""Serve would hand each call and each answer from its own event loop to a second one, which `ToolReplica` has no need of:
its tool computes in threads. Serve reads this in the replica's process when it is imported there."""


class ToolsAppArgs(ToolServing):
    """Arguments of one application; unknown keys are refused."""

    family: Family
    """The tools' family; an application serves one."""
    names: tuple[str, ...] = ()
    """Registered tool names or "module:Class"; empty: every registered tool of the family, those of installed third
    parties (entry points) included."""
    health_check_period_s: Seconds = 10.0
    """Time between two health checks of a replica."""
    health_check_timeout_s: Seconds = 30.0
    """A replica that takes longer to answer one is replaced."""

    def specs(self) -> tuple[type[Tool], ...]:
        """The tools to serve. Raises ConfigError or UnknownNameError, naming the tool that does not fit."""
        if not self.names:
            return tuple(spec for spec in load_tools(TOOLS.names()) if spec.family == self.family)
        specs = load_tools(self.names)
        for spec in specs:
            if spec.family != self.family:
                raise ConfigError(
                    f"names: {spec.name!r} is of the family {spec.family!r}, this application serves {self.family!r}"
                )
        return specs


def application_name(prefix: str, family: Family) -> str:
    """What a family's application is called."""
    return f"{prefix}-{family}"


def family_args(config: ToolsConfig) -> list[ToolsAppArgs]:
    """One application's arguments per family that a job's tools belong to. Raises UserError for a tool that is unknown."""
    specs = load_tools(config.names)
    config.check_keys(specs)
    names: dict[Family, list[str]] = {}
    for name, spec in zip(config.names, specs, strict=True):
        names.setdefault(spec.family, []).append(name)
    shared = {key: getattr(config, key) for key in ToolServing.model_fields if key != "names"}
    return [ToolsAppArgs(family=family, names=tuple(members), **shared) for family, members in names.items()]


def deployment_options(args: ToolsAppArgs, tool: str) -> dict[str, Any]:
    """Options of `serve.deployment` for one tool. A replica that is taken away may finish what it computes."""
    replicas: dict[str, Any] = {"num_replicas": args.num_replicas}
    if args.scaling is not None:
        replicas = {"autoscaling_config": _autoscaling(args.scaling)}
    resources = {"num_cpus": args.num_cpus, "num_gpus": args.num_gpus.get(tool, 0.0)}
    return {
        "name": tool,
        **replicas,
        "max_ongoing_requests": args.max_ongoing,
        "max_queued_requests": args.max_queued,
        "health_check_period_s": args.health_check_period_s,
        "health_check_timeout_s": args.health_check_timeout_s,
        "graceful_shutdown_timeout_s": _DRAIN_S if args.scaling is None else args.limit_s(tool) + _DRAIN_S,
        "ray_actor_options": {**resources, "runtime_env": _runtime_env()},
        "max_constructor_retry_count": 2,
        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},  # a line per call, made while the caller waits
    }


def _runtime_env() -> dict[str, Any]:
    """The job's (or the building task's), which Serve replaces by a deployment's own, with our variables added."""
    inherited: dict[str, Any] = dict(ray.get_runtime_context().runtime_env) if ray.is_initialized() else {}
    return {**inherited, "env_vars": {**allocator_environment(), **inherited.get("env_vars", {}), **_SAME_LOOP}}


def _autoscaling(scaling: ToolScaling) -> AutoscalingConfig:
    """Our policy, by its path: every node has it, because the package is installed there.

    Ray would rather have the interval in an environment variable, which an application cannot set for its replicas.
    """
    kwargs = {"target_wait_s": scaling.target_wait_s, "max_busy": scaling.max_busy}
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        return AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            max_replicas=scaling.max_replicas,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            metrics_interval_s=scaling.interval_s,
            look_back_period_s=5 * scaling.interval_s,
            policy=AutoscalingPolicy(policy_function=POLICY, policy_kwargs=kwargs),
        )
