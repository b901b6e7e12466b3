"""What serving the tools costs, how much it carries, and that it loses no call:

    python benchmarks/tools_serving.py --json serving.json [--only speed load] [--num-calls 2000] [--num-repeats 300]

Starts a Ray of its own on this machine (never one that runs already) and ends it. Overhead and throughput use the
shipped tools on a real picture; the load test a tool that holds its slot for a fixed time (`WaitTool`), since what is
tested there is the serving.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from benchmarks.harness import machine, own_ray, write_figures
from medvista_ray.config import ToolsConfig
from medvista_ray.tools.base import Family, Tool, ToolArgs, ToolClient, ToolContext
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.tools.settings import ToolScaling
from medvista_ray.types import MedImage, ToolResult

CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "refine": ("zoom_in", {"bbox": [200, 200, 600, 700]}),
    "localize": ("segment_medical", {"bbox": [300, 300, 700, 700]}),
    "parse": ("measure", {"bbox": [300, 300, 700, 700]}),
    "knowledge": ("search_text", {"query": "enlarged heart"}),
}
"""One call per family."""
LIGHT = ("zoom_in", "measure")
"""The others' own times spread wider than the overhead."""
IN_FLIGHT = 32
NUM_ROUNDS = 6
MAX_REPLICAS = 3
TIMEOUT_S = 600.0


class WaitArgs(ToolArgs):
    """Arguments of WaitTool."""

    item: int
    seconds: float


class WaitTool(Tool):
    """Holds its slot for a while, as a tool does whose work is done by a GPU, and says which call it was."""

    name: ClassVar[str] = "wait"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "wait."
    Args = WaitArgs

    def run(self, args: WaitArgs, context: ToolContext) -> ToolResult:
        """Wait."""
        time.sleep(args.seconds)
        return ToolResult(text="done", data={"item": args.item, "pid": os.getpid()})


def picture() -> ToolContext:
    """A real chest CT slice, 512 x 512."""
    from medvista_ray.assets.volumes import open_volume

    scan = open_volume("lung1")
    pixels = np.ascontiguousarray(scan.values[len(scan.values) // 2])
    return ToolContext({0: MedImage(pixels, scan.modality, scan.spacing_mm[1:], scan.unit, (-160.0, 240.0))}, {})


async def timed(client: ToolClient, name: str, arguments: dict[str, Any], context: ToolContext, num: int) -> Any:
    """Seconds of `num` calls, one after the other; each must succeed."""
    taken = np.empty(num)
    for i in range(num):
        start = time.perf_counter()
        outcome = await client.call(name, arguments, context)
        taken[i] = time.perf_counter() - start
        assert outcome.error is None, outcome.message
    return taken


async def overhead(served: ToolClient, local: ToolClient, context: ToolContext, num: int) -> dict[str, Any]:
    """Time of a call through Serve less that of the same call in this process, per tool; the picture goes by its hash.

    In rounds over tools and clients, since a machine's speed changes within seconds; the first round warms up.
    """
    taken: dict[tuple[str, ToolClient], list[Any]] = {
        (name, client): [] for name, _ in CALLS.values() for client in (local, served)
    }
    for number in range(NUM_ROUNDS + 1):
        for name, arguments in CALLS.values():
            for client in (local, served):
                seconds = await timed(client, name, arguments, context, -(-num // NUM_ROUNDS))
                if number:
                    taken[name, client].append(seconds)
    figures: dict[str, Any] = {}
    for name, _ in CALLS.values():
        inside, through = (np.concatenate(taken[name, client]) * 1e3 for client in (local, served))
        figures[name] = {f"p{q}_ms": round(float(np.percentile(through, q) - np.percentile(inside, q)), 3) for q in (50, 95)}
        figures[name]["in_process_p50_ms"] = round(float(np.median(inside)), 3)
    return figures


async def new_picture_overhead(served: ToolClient, local: ToolClient, context: ToolContext, num: int) -> float:
    """The same in ms for calls whose picture the tool has not seen, the larger of LIGHT at the median."""
    image, worst = context.image(0), 0.0
    for tool, name in enumerate(LIGHT):
        (arguments,) = (arguments for called, arguments in CALLS.values() if called == name)
        pictures = [replace(image, pixels=image.pixels + 1 + tool * num + i) for i in range(num)]
        contexts = [ToolContext({0: one}, {}) for one in pictures]
        inside, through = [
            np.concatenate([await timed(client, name, arguments, one, 1) for one in contexts]) for client in (local, served)
        ]
        worst = max(worst, float(np.median(through) - np.median(inside)) * 1e3)
    return round(worst, 3)


async def throughput(client: ToolClient, context: ToolContext, num: int) -> dict[str, float]:
    """Calls per second per family, one replica a tool, IN_FLIGHT callers."""
    figures: dict[str, float] = {}
    for family, (name, arguments) in CALLS.items():
        start = time.perf_counter()
        await asyncio.gather(*(timed(client, name, arguments, context, num // IN_FLIGHT) for _ in range(IN_FLIGHT)))
        figures[family] = round(num // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - start), 1)
    return figures


async def load_test(client: Any, app_name: str, num_calls: int, seconds: float) -> dict[str, Any]:
    """Calls from IN_FLIGHT callers; a replica is killed when a half is done and three run; then the replicas must go again."""
    from ray import serve

    items, pids, answered, killed = iter(range(num_calls)), set[int](), list[int](), list[int]()

    def num_running() -> int:
        (deployment,) = serve.status().applications[app_name].deployments.values()
        return deployment.replica_states.get("RUNNING", 0)

    async def caller() -> None:
        for item in items:
            outcome = await client.call("wait", {"item": item, "seconds": seconds}, ToolContext({}, {}))
            if outcome.result is not None:
                answered.append(outcome.result.data["item"])
                pids.add(outcome.result.data["pid"])
                latest[0] = outcome.result.data["pid"]

    async def watch() -> None:
        while not (finished.is_set() and seen[-1] == 1):
            number = await asyncio.to_thread(num_running)
            if not seen or seen[-1] != number:
                seen.append(number)
            if not killed and number == MAX_REPLICAS and len(answered) >= num_calls // 2:
                killed.append(latest[0])
                os.kill(latest[0], signal.SIGKILL)
            await asyncio.sleep(0.2)

    seen, latest, finished = [await asyncio.to_thread(num_running)], [0], asyncio.Event()
    start = time.perf_counter()
    watcher = asyncio.create_task(watch())
    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    duration_s = time.perf_counter() - start
    finished.set()
    with suppress(TimeoutError):
        await asyncio.wait_for(watcher, TIMEOUT_S)
    return {
        "num_calls": num_calls,
        "num_lost": num_calls - len(set(answered)),
        "num_answered_twice": len(answered) - len(set(answered)),
        "replicas_seen": seen,
        "num_killed": len(killed),
        "num_processes": len(pids),
        "num_retries": sum(client.failures.values()),
        "num_back_pressure": client.num_back_pressure,
        "load_duration_s": round(duration_s, 1),
    }


@contextmanager
def own_serve() -> Iterator[None]:
    """A Ray of this process's own with nothing left on it in the end."""
    with own_ray():
        from ray import serve

        try:
            yield
        finally:
            serve.shutdown()


def served(config: ToolsConfig, body: Callable[[Any], Awaitable[dict[str, Any]]]) -> tuple[dict[str, Any], float]:
    """What `body` finds with a client of that application, and the seconds that deploying it took."""
    from ray._private.async_compat import get_new_event_loop

    from serve_apps.deploy import deploy_tools, make_client, shutdown_tools

    async def main() -> dict[str, Any]:
        try:
            with closing(make_client(config)) as client:
                return await body(client)
        finally:  # while the loop runs on which the client still hears of the applications
            await asyncio.to_thread(shutdown_tools, config.app_name)

    deploy_s = deploy_tools(config)
    with asyncio.Runner(loop_factory=get_new_event_loop) as runner:  # as in the actors that call tools
        return runner.run(main()), deploy_s


def speed(args: Namespace) -> dict[str, Any]:
    """Overhead and throughput."""
    names = tuple(name for name, _ in CALLS.values())
    context, local = picture(), LocalToolClient(names, TIMEOUT_S)

    async def body(client: Any) -> dict[str, Any]:
        per_tool = await overhead(client, local, context, args.num_repeats)
        light = [per_tool[name] for name in LIGHT]
        return {
            "overhead_p50_ms": max(figures["p50_ms"] for figures in light),
            "overhead_p95_ms": max(figures["p95_ms"] for figures in light),
            "overhead_new_picture_p50_ms": await new_picture_overhead(client, local, context, args.num_repeats // 3),
            "overhead": per_tool,
            "calls_per_s": await throughput(client, context, args.num_repeats),
        }

    figures, deploy_s = served(ToolsConfig(names=names, app_name="bench", timeout_s=TIMEOUT_S), body)
    return figures | {"deploy_s": round(deploy_s, 1)}


def load(args: Namespace) -> dict[str, Any]:
    """The load test; its replicas go ten times sooner than in production, so that it ends."""
    scaling = ToolScaling(
        max_replicas=MAX_REPLICAS, target_wait_s=0.25, upscale_delay_s=1.0, downscale_delay_s=6.0, interval_s=1.0
    )
    config = ToolsConfig(names=("benchmarks.tools_serving:WaitTool",), app_name="load", scaling=scaling, num_retries=8)
    return served(config, lambda client: load_test(client, "load-parse", args.num_calls, args.seconds))[0]


PARTS = {"speed": speed, "load": load}


def main() -> int:
    """Measure; the JSON goes to --json and to the screen. 1 if a call was lost or the replicas did not follow."""
    parser = ArgumentParser(description="Cost, throughput and losses of tools behind Ray Serve.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="default: all")
    parser.add_argument("--num-calls", type=int, default=2000, help="calls of the load test (default: 2000)")
    parser.add_argument("--seconds", type=float, default=0.05, help="what each of them takes (default: 0.05)")
    parser.add_argument("--num-repeats", type=int, default=300, help="calls behind each other figure (default: 300)")
    args = parser.parse_args()
    figures = machine()
    with own_serve():
        for part in args.only:
            figures |= PARTS[part](args)
    write_figures(args.json, figures)
    return int("load" in args.only and not holds(figures))


def holds(figures: dict[str, Any]) -> bool:
    """Whether no call was lost although a replica was killed, and the replicas went up and down again."""
    seen: list[int] = figures["replicas_seen"]
    return not figures["num_lost"] and figures["num_killed"] == 1 and (seen[0], max(seen), seen[-1]) == (1, MAX_REPLICAS, 1)


if __name__ == "__main__":
    sys.exit(main())
