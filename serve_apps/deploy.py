"""Start and stop the tool application from a run's configuration.

Invariant: nothing listens on a network: the HTTP proxy is disabled and the application has no route. An application
outlives the job that deployed it, so whoever calls `deploy_tools` also calls `shutdown_tools`.
"""

from __future__ import annotations

import logging
import time

from ray import serve
from ray.serve.schema import ApplicationStatus, ApplicationStatusOverview

from medvista_ray.config import ToolsConfig
from medvista_ray.errors import ToolInfrastructureError
from serve_apps.tool_client import ServeToolClient
from serve_apps.tools import ToolsAppArgs, build_tools_app

_log = logging.getLogger(__name__)
_POLL_S = 0.2


def app_args(config: ToolsConfig) -> ToolsAppArgs:
    """The application's arguments that a run's configuration asks for."""
    return ToolsAppArgs(
        names=config.names,
        timeout_s=config.timeout_s,
        max_ongoing=config.max_ongoing,
        max_queued=config.max_queued,
        num_replicas=config.num_replicas,
        num_threads=config.num_threads,
        embedding_cache_mib=config.embedding_cache_mib,
    )


def deploy_tools(config: ToolsConfig, ready_timeout_s: float = 180.0) -> float:
    """Deploy and wait until every replica runs; the seconds it took. Ray must be initialised.

    Raises ToolInfrastructureError with Serve's message if it fails or takes longer than `ready_timeout_s`.
    """
    start = time.perf_counter()
    app = build_tools_app(app_args(config))
    serve.start(proxy_location="Disabled", http_options={"host": "127.0.0.1"})
    serve.run_many(
        [serve.RunTarget(app, name=config.app_name, route_prefix=None)],
        wait_for_ingress_deployment_creation=False,
        wait_for_applications_running=False,
    )
    _wait_until_running(config.app_name, start + ready_timeout_s)
    duration_s = time.perf_counter() - start
    _log.info("application %s runs %s after %.1f s", config.app_name, ", ".join(config.names), duration_s)
    return duration_s


def make_client(config: ToolsConfig) -> ServeToolClient:
    """A client for this process; call it where the event loop runs."""
    return ServeToolClient(config.app_name, config.names, config.timeout_s, config.num_retries)


def shutdown_tools(app_name: str) -> None:
    """Delete the application and wait until its replicas are gone. Other applications stay."""
    serve.delete(app_name)


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
