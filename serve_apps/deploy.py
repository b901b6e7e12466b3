"""Start and stop a job's tool applications, one per family, from its configuration.

Invariants: nothing listens on a network: the HTTP proxy is disabled and the applications have no route. They are
deployed by one request and start side by side, so that families cost a job no time; a deployment stays one tool, so
that the number of processes is that of the tools. Applications outlive the job that deployed them, so whoever calls
`deploy_tools` also calls `shutdown_tools`.
"""

from __future__ import annotations

import logging
import time

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from medvista_ray.config import ToolsConfig
from medvista_ray.errors import ToolInfrastructureError
from serve_apps.args import application_name, family_args
from serve_apps.tool_client import ServeToolClient
from serve_apps.tools import build_tools_app

_log = logging.getLogger(__name__)
_POLL_S = 0.2
_GONE_S = 60.0


def deploy_tools(config: ToolsConfig, ready_timeout_s: float = 180.0) -> float:
    """Deploy and wait until every replica runs; the seconds it took. Ray must be initialised.

    Raises ToolInfrastructureError with Serve's message if it fails or takes longer than `ready_timeout_s`.
    """
    start = time.perf_counter()
    apps = {application_name(config.app_name, args.family): build_tools_app(args) for args in family_args(config)}
    serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1"})
    serve.run_many(
        [serve.RunTarget(app, name=name, route_prefix=None) for name, app in apps.items()],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    for name in apps:
        _wait_until_running(name, start + ready_timeout_s)
    duration_s = time.perf_counter() - start
    _log.info("applications %s run %s after %.1f s", ", ".join(apps), ", ".join(config.names), duration_s)
    return duration_s


def make_client(config: ToolsConfig) -> ServeToolClient:
    """A client for this process; call it where the event loop runs."""
    limits = {spec.name: config.limit_s(spec.name) for args in family_args(config) for spec in args.specs()}
    return ServeToolClient(config.app_name, config.names, config.timeout_s, config.num_retries, tool_timeout_s=limits)


def shutdown_tools(app_name: str) -> None:
    """Delete the applications of that prefix and wait until their replicas are gone. Others stay."""
    names = [name for name in serve.status().applications if name.startswith(f"{app_name}-")]
    for name in names:
        serve.delete(name, _blocking=False)  # side by side
    deadline = time.perf_counter() + _GONE_S
    while any(name in serve.status().applications for name in names):
        if time.perf_counter() > deadline:
            raise ToolInfrastructureError(f"applications {', '.join(names)} are not gone after {_GONE_S:g} s")
        time.sleep(_POLL_S)


def _wait_until_running(app_name: str, deadline: float) -> None:
    while time.perf_counter() < deadline:
        app = serve.status().applications.get(app_name)
        if app is not None and app.status == ApplicationStatus.RUNNING:
            return
        if app is not None and app.status in (ApplicationStatus.DEPLOY_FAILED, ApplicationStatus.UNHEALTHY):
            raise ToolInfrastructureError(f"application {app_name!r} did not start: {_why(app)}")
        time.sleep(_POLL_S)
    raise ToolInfrastructureError(f"application {app_name!r} was not ready in time; see serve.status()")


def _why(app: ApplicationStatusOverview) -> str:
    """Serve's words: the application's, and those of each deployment that is not healthy."""
    parts = [app.message, *(f"{name}: {part.message}" for name, part in app.deployments.items())]
    return "; ".join(part for part in parts if not part.endswith(": ") and part)
