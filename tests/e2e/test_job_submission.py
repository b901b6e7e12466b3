"""The whole job as a user submits it to a cluster, token authentication on.

One run shows: `ray job submit --working-dir .` works; a client with a wrong token is refused; an engine and a tool's
replica that are killed in mid-run come back and nothing is lost; the run folder holds everything that the README
promises, and the books balance at every step.
"""

from __future__ import annotations

import itertools
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.assets]

RAY = str(Path(sys.executable).with_name("ray"))
START_S, RUN_S = 90.0, 600.0
STEPS = 5
REPLICA = ":measure"
"""End of the class name of the tool replica that is killed after the first step, together with an engine."""
SETTINGS = (
    f"grpo.num_steps={STEPS}",
    "bench.num_test=16",
    "flow.checkpoint_every=2",
)


@dataclass(frozen=True)
class Head:
    """A running head node."""

    dashboard: str
    environment: dict[str, str]
    process: subprocess.Popen[bytes]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(what: str, timeout_s: float, is_there: Callable[[], object]) -> None:
    until = time.monotonic() + timeout_s
    while not is_there():
        assert time.monotonic() < until, f"waited {timeout_s:.0f} s for {what}"
        time.sleep(2.0)


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[Head]:
    port, gcs = _free_port(), _free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # As in an activated environment: the job's entrypoint is plain `python`.
    environment |= {"RAY_USAGE_STATS_ENABLED": "0", "PATH": f"{Path(RAY).parent}{os.pathsep}{os.environ['PATH']}"}
    environment.pop("RAY_ADDRESS", None)
    folder = f"/tmp/mv{port}"
    command = [RAY, "start", "--head", "--block", f"--port={gcs}", f"--dashboard-port={port}", "--dashboard-host=127.0.0.1"]
    command += ["--num-cpus=4", f"--temp-dir={folder}", "--include-dashboard=true", "--node-ip-address=127.0.0.1"]
    process = subprocess.Popen(command, env=environment, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    head = Head(f"http://127.0.0.1:{port}", environment, process)
    try:
        _wait("the dashboard", START_S, lambda: _client(head, "list").returncode == 0)
        yield head
    finally:
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:
            if child.is_running():
                child.kill()


def _client(head: Head, *arguments: str, token: bool = True) -> subprocess.CompletedProcess[str]:
    environment = dict(head.environment) if token else {**head.environment, "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    command = [RAY, "job", *arguments, "--address", head.dashboard]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def _steps(run: Path) -> list[dict[str, float]]:
    path = run / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def run(head: Head, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Submit the smoke run and wait for its end."""
    run = tmp_path_factory.mktemp("submitted") / "run"
    job = _submit(head, root, run)
    _wait("the first step", RUN_S, lambda: _steps(run) or _status(head, job) not in ("PENDING", "RUNNING"))
    assert _steps(run), _client(head, "logs", job).stdout[-4000:]
    _kill_engine_and_replica(head)
    _wait("the job's end", RUN_S, lambda: _status(head, job) in ("SUCCEEDED", "FAILED", "STOPPED"))
    assert _status(head, job) == "SUCCEEDED", _client(head, "logs", job).stdout[-4000:]
    return run


def _kill_engine_and_replica(head: Head) -> None:
    """SIGKILL the generator's engine, which is its largest child, and a tool's only replica."""
    pids = {actor["class_name"]: actor["pid"] for actor in _actors(head) if actor["state"] == "ALIVE"}
    (replica,) = [pid for name, pid in pids.items() if name.endswith(REPLICA)]
    max(psutil.Process(pids["GeneratorActor"]).children(), key=lambda child: child.memory_info().rss).kill()
    psutil.Process(replica).kill()


def _actors(head: Head) -> list[dict[str, Any]]:
    command = [RAY, "list", "actors", "--address", head.dashboard, "--format=json", "--limit=1000"]
    listed = subprocess.run(command, env=head.environment, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(listed.stdout)


def _submit(head: Head, root: Path, run: Path) -> str:
    """The submission id. The node's job agent may come up later than the dashboard; a refused id is used up."""
    train = ["python", "-m", "medvista_ray.train", "--config", "configs/train/smoke.yaml", "--output-dir", str(run)]
    ids = (f"smoke-{number}" for number in itertools.count())
    last = subprocess.CompletedProcess[str]([], 1)

    def is_submitted() -> bool:
        nonlocal last
        command = [RAY, "job", "submit", "--address", head.dashboard, "--no-wait", "--submission-id", next(ids)]
        command += ["--working-dir", ".", "--", *train, "--set", *SETTINGS]
        last = subprocess.run(command, env=head.environment, cwd=root, capture_output=True, text=True, timeout=120, check=False)
        return last.returncode == 0

    try:
        _wait("the job's submission", START_S, is_submitted)
    except AssertionError as error:
        raise AssertionError(f"{error}: {last.stdout[-1000:]}{last.stderr[-1000:]}") from None
    return last.args[last.args.index("--submission-id") + 1]


def _status(head: Head, job: str) -> str:
    """Over HTTP: the command-line client takes two seconds of a core each time."""
    headers = {"Authorization": f"Bearer {head.environment['RAY_AUTH_TOKEN']}"}
    request = urllib.request.Request(f"{head.dashboard}/api/jobs/{job}", headers=headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return str(json.load(answer)["status"])


def test_a_client_with_a_wrong_token_is_refused(head: Head) -> None:
    refused = _client(head, "list", token=False)
    assert refused.returncode != 0


def test_every_step_of_the_submitted_run_accounts_for_every_group(run: Path) -> None:
    steps = _steps(run)
    assert [step["step"] for step in steps] == list(range(1, STEPS + 1))
    for step in steps:
        done = step["num_trained"] + step["num_filtered"] + step["num_failed"]
        assert step["num_submitted"] == done + step["num_waiting"] + step["num_running"] + step["num_ready"]


def test_the_killed_engine_came_back_and_no_group_was_lost(run: Path) -> None:
    last, log = _steps(run)[-1], (run / "run.log").read_text()
    assert last["num_generator_faults"] >= 1
    assert last["num_failed"] == 0
    assert last["staleness_max"] <= 1
    assert "Traceback" not in log


def test_the_run_folder_holds_a_complete_summary_and_a_report(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert set(summary["accuracy"]) == {"no_tools", "naive", "sft", "rl"}
    assert all({"mean", "ci95", "n"} <= set(arm) for arm in summary["accuracy"].values())
    assert all(summary["invariants"].values())
    assert summary["staleness_max"] <= summary["eta"]
    assert summary["submitted"] == summary["trained"] + summary["filtered"] + summary["failed"] + summary["running"]
    assert summary["weight_updates"]["num"] >= STEPS
    assert set(summary["tools"]) == {"zoom_in", "segment_medical", "measure", "search_text"}
    assert summary["peak_memory_gib"] < 16.0
    assert summary["vllm_version"]
    assert (run / "report.html").stat().st_size > 50_000
    assert (run / "policies" / "rl" / "model.safetensors").exists()
