"""The tools behind a real Ray Serve: answers as in-process, nothing lost when a replica dies or a queue is full."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ray.serve.handle import DeploymentHandle

from medvista_ray.config import ToolsConfig
from medvista_ray.errors import ToolInfrastructureError
from medvista_ray.tools.base import ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.tools.settings import ToolScaling
from medvista_ray.types import ErrorCode, Mask, MedImage, ToolOutcome

SLEEP = "tests.serve.tool_doubles:SleepTool"
NAMES = ("zoom_in", "measure", SLEEP)
CONFIG = ToolsConfig(names=NAMES, app_name="tools-under-test", timeout_s=2.0, max_ongoing=4, max_queued=4)


@pytest.fixture(scope="module")
def application(local_ray: None) -> Iterator[str]:
    """The application, deployed once for this module."""
    from ray import serve

    from serve_apps.deploy import deploy_tools, shutdown_tools

    assert deploy_tools(CONFIG) < 60.0
    yield CONFIG.app_name
    shutdown_tools(CONFIG.app_name)
    assert not serve.status().applications
    serve.shutdown()


def context() -> ToolContext:
    rng = np.random.default_rng(0)
    pixels = rng.normal(50, 20, (200, 300)).astype(np.float32)
    image = MedImage(pixels=pixels, modality="CT", spacing_mm=(0.7, 0.9), unit="HU", window=(0.0, 100.0))
    mask = np.zeros((200, 300), bool)
    mask[40:90, 100:180] = True
    return ToolContext({0: image}, {0: Mask(0, mask)})


def run(body: Callable[[Any], Awaitable[Any]], **options: Any) -> Any:
    """Run `body(client)` on an event loop of its own."""
    from serve_apps.tool_client import ServeToolClient

    async def main() -> Any:
        return await body(ServeToolClient(CONFIG.app_name, NAMES, **{"timeout_s": 2.0, **options}))

    return asyncio.run(main())


def same(a: ToolOutcome, b: ToolOutcome) -> bool:
    """Equal but for the time they took."""
    if a.result is None or b.result is None:
        return (a.result, a.error, a.message) == (b.result, b.error, b.message)
    pictures = zip(a.result.images, b.result.images, strict=True)
    return (a.result.text, a.result.data) == (b.result.text, b.result.data) and all(x.key == y.key for x, y in pictures)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("zoom_in", {"bbox": [100, 100, 400, 500]}),
        ("measure", {"mask_index": 0, "reference_bbox": [0, 0, 200, 200]}),
        ("measure", {"bbox": [10, 20, 300, 400]}),
        ("measure", {"box": [10, 20, 300, 400]}),
        ("measure", {"bbox": [10, 20, 300, 4000]}),
        ("zoom_in", {"bbox": [1, 1, 9, 9], "image_index": 4}),
        ("zoom", {}),
    ],
)
def test_a_call_through_serve_equals_the_call_in_process(application: str, name: str, arguments: dict[str, Any]) -> None:
    local = asyncio.run(LocalToolClient(["zoom_in", "measure", SLEEP]).call(name, arguments, context()))
    remote = run(lambda client: client.call(name, arguments, context()))
    assert same(local, remote), (local, remote)


def test_a_picture_is_stored_once_per_process(application: str) -> None:
    async def body(client: Any) -> int:
        for _ in range(3):
            outcome = await client.call("measure", {"bbox": [1, 2, 300, 400]}, context())
            assert outcome.error is None
        return len(client._images)

    assert run(body) == 1


def ways(client: Any) -> list[str]:
    """Which way each later call goes, as it goes."""
    taken: list[str] = []

    def counted(name: str) -> None:
        way = getattr(client, f"_by_{name}")

        async def call(*args: Any) -> Any:
            taken.append(name)
            return await way(*args)

        setattr(client, f"_by_{name}", call)

    counted("message")
    counted("reference")
    return taken


def test_a_picture_travels_once_per_tool_and_again_when_a_replica_no_longer_has_it(application: str) -> None:
    def shifted(by: float) -> ToolContext:
        return ToolContext({0: MedImage(context().image(0).pixels + np.float32(by), "CT", (0.7, 0.9))}, {})

    async def body(client: Any) -> None:
        taken = ways(client)
        outcomes = [await client.call("measure", {"bbox": [1, 2, 300, 400]}, shifted(1.0)) for _ in range(3)]
        assert taken == ["message"] * 3
        assert all(same(outcome, outcomes[0]) for outcome in outcomes)
        assert outcomes[0].error is None
        client._images.sent("measure", [shifted(2.0).image(0)])  # as if it had been, to a replica that has gone
        assert (await client.call("measure", {"bbox": [1, 2, 300, 400]}, shifted(2.0))).error is None
        assert taken[3:] == ["message", "reference"]
        large = ToolContext({0: MedImage(np.ones((1024, 1024), np.float32), "CT", (0.7, 0.9))}, {})
        for _ in range(2):
            assert (await client.call("measure", {"bbox": [1, 2, 300, 400]}, large)).error is None
        assert taken[5:] == ["message", "reference", "message"]

    run(body)


def test_a_result_too_large_for_a_message_comes_by_reference(application: str) -> None:
    large = {"bbox": [0, 0, 1000, 1000], "scale": 16.0}

    async def body(client: Any) -> None:
        first = await client.call("zoom_in", large, context())
        taken = ways(client)
        again = await client.call("zoom_in", large, context())
        assert taken in (["message"], ["message", "reference"])
        assert (taken[-1] == "reference") == (again.result.images[0].pixels.nbytes > 3 << 20)
        assert same(first, again)

    run(body)


def test_a_call_that_a_replica_gives_up_is_retried_and_cancels_nobody() -> None:
    from ray.serve.exceptions import RayServeException

    from serve_apps.tool_client import _result

    class Response:
        num_cancelled = 0

        def __init__(self, pause_s: float) -> None:
            self.pause_s = pause_s

        def cancel(self) -> None:
            Response.num_cancelled += 1

        def __await__(self) -> Any:
            yield from asyncio.sleep(self.pause_s).__await__()
            raise asyncio.CancelledError

    async def body() -> None:
        with pytest.raises(RayServeException, match="gave the call up"):
            await _result(Response(0.0))
        assert Response.num_cancelled == 0
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await _result(Response(5.0))
        assert Response.num_cancelled == 1

    asyncio.run(body())


def test_a_call_that_takes_too_long_is_an_observation(application: str) -> None:
    outcome = run(lambda client: client.call("sleep", {"seconds": 2.4}, context()))
    assert outcome.error == ErrorCode.E5
    assert "longer than 2 s" in outcome.message


def test_no_call_is_lost_when_the_replica_is_killed_in_the_middle(application: str) -> None:
    async def body(client: Any) -> None:
        pid = (await client.call("sleep", {"seconds": 0.0}, context())).result.data["pid"]
        calls = [asyncio.create_task(client.call("sleep", {"seconds": 0.5, "item": i}, context())) for i in range(8)]
        await asyncio.sleep(0.3)
        assert not any(call.done() for call in calls)
        os.kill(pid, signal.SIGKILL)
        outcomes = await asyncio.gather(*calls)
        assert [outcome.result.data["item"] for outcome in outcomes] == list(range(8))
        assert all(outcome.result.data["pid"] != pid for outcome in outcomes)
        assert sum(client.failures.values()) > 0
        assert client.stats()["sleep"]["num_retries"] == sum(client.failures.values())
        assert client.stats()["sleep"]["num_errors"] == 0

    run(body, num_retries=6)


def test_back_pressure_is_waited_for_and_counted(application: str) -> None:
    async def body(client: Any) -> None:
        calls = [client.call("sleep", {"seconds": 0.1, "item": i}, context()) for i in range(24)]
        outcomes = await asyncio.gather(*calls)
        assert [outcome.result.data["item"] for outcome in outcomes] == list(range(24))
        assert client.num_back_pressure > 0
        assert client.stats()["sleep"]["num_retries"] == 0

    run(body)


def test_an_application_that_is_not_there_is_an_infrastructure_error(application: str) -> None:
    from serve_apps.tool_client import ServeToolClient

    async def main() -> None:
        client = ServeToolClient("no-such-application", ("measure",), num_retries=1)
        await client.call("measure", {"bbox": [1, 2, 3, 4]}, context())

    with pytest.raises(ToolInfrastructureError, match="no-such-application"):
        asyncio.run(main())


def test_first_calls_at_once_share_one_router_on_the_callers_loop(application: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from serve_apps import tool_client

    made: list[Any] = []

    def make(*names: str) -> Any:
        made.append(DeploymentHandle(*names))
        return made[-1]

    async def body(client: Any) -> None:
        arguments = {"bbox": [10, 20, 300, 400]}
        outcomes = await asyncio.gather(*(client.call("measure", arguments, context()) for _ in range(4)))
        assert [outcome.error for outcome in outcomes] == [None] * 4
        assert not made[0].init_options._run_router_in_separate_loop
        client.close()

    monkeypatch.setattr(tool_client, "DeploymentHandle", make)
    run(body)
    assert len(made) == 1


def test_replicas_answer_no_http_and_run_their_own_probe(application: str) -> None:
    from ray import serve

    status = serve.status()
    assert not status.proxies
    served = {name: set(app.deployments) for name, app in status.applications.items()}
    assert served == {f"{application}-refine": {"zoom_in"}, f"{application}-parse": {"measure", "sleep"}}


ENDED_JOB = """
import asyncio, os, time
os.environ["RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S"] = "1"
import ray
from tests.serve.test_tools_application import CONFIG, context
from medvista_ray.tools.settings import ToolScaling
from serve_apps.deploy import deploy_tools, make_client, shutdown_tools

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
config = CONFIG.model_copy(update={"names": CONFIG.names[:1], "scaling": ToolScaling(max_replicas=1), "app_name": "ended"})
deploy_tools(config)
client = make_client(config)
asyncio.run(client.call("zoom_in", {"bbox": [0, 0, 500, 500]}, context()))
client.close()
shutdown_tools(config.app_name)
ray.shutdown()
time.sleep(4)
print("alive" if ray.is_initialized() else "ended")
"""


def test_a_client_that_was_closed_asks_nothing_more_of_ray(root: Path) -> None:
    done = subprocess.run([sys.executable, "-c", ENDED_JOB], cwd=root, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.splitlines()[-1] == "ended"
    assert "metrics task" not in done.stderr


def test_a_replica_whose_threads_hang_is_unhealthy_until_they_return() -> None:
    from serve_apps.args import ToolsAppArgs
    from serve_apps.tools import ToolReplica

    async def body() -> None:
        replica = ToolReplica(SLEEP, ToolsAppArgs(family="parse", names=(SLEEP,), timeout_s=0.1))
        await replica.check_health()
        outcomes = await asyncio.gather(*(replica.call({"seconds": 0.6}, (0, 0), (), {}) for _ in range(5)))
        assert [outcome.error for outcome, _ in outcomes] == [ErrorCode.E5] * 5
        with pytest.raises(RuntimeError, match="threads hang"):
            await replica.check_health()
        await asyncio.sleep(0.8)
        await replica.check_health()

    asyncio.run(body())


def test_a_tool_without_a_replica_gets_one_when_it_is_called(application: str) -> None:
    from ray import serve

    from serve_apps.deploy import deploy_tools, make_client, shutdown_tools

    scaling = ToolScaling(min_replicas=0, max_replicas=1, upscale_delay_s=0.0)
    config = CONFIG.model_copy(update={"app_name": "tools-asleep", "scaling": scaling})

    def num_replicas() -> dict[str, int]:
        applications = serve.status().applications.items()
        parts = {
            name: part for app, of in applications if app.startswith("tools-asleep-") for name, part in of.deployments.items()
        }
        return {name: sum(part.replica_states.values()) for name, part in parts.items()}

    async def body() -> ToolOutcome:
        return await make_client(config).call("sleep", {"seconds": 0.0, "item": 7}, context())

    deploy_tools(config)
    try:
        assert num_replicas() == {"zoom_in": 0, "measure": 0, "sleep": 0}
        outcome = asyncio.run(body())
        assert outcome.result is not None
        assert outcome.result.data["item"] == 7
        assert num_replicas() == {"zoom_in": 0, "measure": 0, "sleep": 1}
    finally:
        shutdown_tools(config.app_name)
