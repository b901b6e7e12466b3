"""summary.json: the keys that others read, figures that follow from the logs, and its face on the terminal."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from medvista_ray.config import TrainConfig
from medvista_ray.errors import RunFolderError
from medvista_ray.reports.memory import MARKER_NAME, PeakMemory, measure, run_processes
from medvista_ray.reports.progress import RunProgress, sparkline, step_line, who_waits
from medvista_ray.reports.summary import build_summary, read_summary, reward_curve, write_summary
from medvista_ray.reports.view import duration, render_summary
from tests.synthetic_run import RATES, make_facts, write_run

REQUIRED = {
    "accuracy", "wall_s", "peak_memory_gib", "eta", "staleness_max", "submitted", "trained", "filtered", "failed",
    "running", "weight_updates", "idle_frac", "tools", "versions",
}  # fmt: skip


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    write_run(folder, num_tasks=240, num_steps=20)
    return folder


@pytest.fixture(scope="module")
def tree(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def test_summary_has_the_agreed_keys(tree: dict[str, Any]) -> None:
    assert set(tree) >= REQUIRED
    assert set(tree["accuracy"]) == set(RATES)
    assert all(set(value) == {"mean", "ci95", "n"} for value in tree["accuracy"].values())
    assert set(tree["weight_updates"]) == {"num", "median_ms"}
    assert set(tree["idle_frac"]) == {"generator", "learner"}
    assert all(set(value) == {"num_calls", "p50_ms", "num_errors"} for value in tree["tools"].values())
    assert set(tree["tools"]) == {"zoom_in", "segment_medical", "measure", "search_text"}


def test_figures_follow_from_the_logs(tree: dict[str, Any]) -> None:
    assert tree["accuracy"]["rl"]["n"] == 240
    assert tree["accuracy"]["rl"]["mean"] > tree["accuracy"]["sft"]["mean"] > tree["accuracy"]["naive"]["mean"]
    assert tree["differences"]["rl - sft"]["mean"] == pytest.approx(
        tree["accuracy"]["rl"]["mean"] - tree["accuracy"]["sft"]["mean"]
    )
    assert tree["tools"]["zoom_in"] == {"num_calls": 20 * 8 + 3 * 240, "p50_ms": pytest.approx(4.0), "num_errors": 0}
    assert tree["tools"]["measure"]["num_errors"] > 0
    assert tree["tools"]["segment_medical"] == {"num_calls": 0, "p50_ms": None, "num_errors": 0}
    assert tree["weight_updates"] == {"num": 3, "median_ms": 31.0}
    assert tree["staleness_max"] == 1
    assert tree["reward_curve"]["end"] > tree["reward_curve"]["start"]
    assert tree["versions"]["numpy"]


def test_summary_reads_back_as_it_was_written(run_dir: Path, tmp_path: Path) -> None:
    summary = read_summary(run_dir)
    write_summary(summary, tmp_path)
    assert read_summary(tmp_path) == summary


def test_broken_books_show(run_dir: Path) -> None:
    facts = make_facts(running=0, staleness_histogram={0: 5, 3: 1, 4: 0})
    summary = build_summary(run_dir, TrainConfig(), facts)
    assert summary.staleness_max == 3
    assert [rule for rule, holds in summary.invariants.items() if holds] == [
        "engine and learner agree (mismatch KL <= 0.01 at the first step)"
    ]
    assert "✗ BROKEN: staleness <= eta" in shown(render_summary(summary))


def test_an_engine_that_serves_other_weights_than_the_learners_shows(tmp_path: Path) -> None:
    lines = ({"step": 1, "mismatch_kl": 0.1}, {"step": 2, "mismatch_kl": 1e-4})
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    summary = build_summary(tmp_path, TrainConfig(), make_facts())
    assert [rule for rule, holds in summary.invariants.items() if not holds and "agree" in rule]


def test_a_run_without_evaluation_has_a_summary(tmp_path: Path) -> None:
    summary = build_summary(tmp_path, TrainConfig(), make_facts(weight_update_ms=(), staleness_histogram={}))
    assert (summary.accuracy, summary.reward_curve, summary.med) == ({}, None, None)
    assert summary.weight_updates.median_ms is None
    assert "no evaluation" in shown(render_summary(summary))


def test_an_unfinished_or_torn_run_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="has not finished"):
        read_summary(tmp_path)
    (tmp_path / "summary.json").write_text('{"name": ')
    with pytest.raises(RunFolderError, match="cannot be read"):
        read_summary(tmp_path)


def test_terminal_summary_names_what_ran(run_dir: Path) -> None:
    text = shown(render_summary(read_summary(run_dir)))
    for part in (
        "after RL",
        "rl - sft",
        "zoom_in",
        "medvista-tools",
        "0.32.0",
        "pid 4711",
        "weight updates",
        "9.4 GiB",
    ):
        assert part in text


def test_reward_curve_averages_the_first_and_last_tenth() -> None:
    curve = reward_curve([{"reward_mean": float(n)} for n in range(20)])
    assert curve is not None
    assert (curve.start, curve.end, curve.window, curve.num_steps) == (0.5, 18.5, 2, 20)
    assert reward_curve([{"loss": 1.0}]) is None


def test_a_step_counts_in_the_reward_curve_by_its_episodes() -> None:
    steps = [{"reward_mean": 0.5, "num_episodes": 100.0}] * 19 + [{"reward_mean": 1.0, "num_episodes": 96.0}]
    curve = reward_curve([*steps, {"reward_mean": 0.0, "num_episodes": 4.0}])
    assert curve is not None
    assert (curve.start, curve.end) == (0.5, pytest.approx(0.96))


def test_peak_memory_sees_a_child_that_came_and_went() -> None:
    code = "import time; block = bytearray(150 * 2**20); time.sleep(1.0)"
    with PeakMemory(interval_s=0.05, max_share=1.0) as memory:
        before = memory.peak_gib
        subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
    assert 0.14 < memory.peak_gib - before < 0.5
    assert memory.num_samples > 5
    assert sum(memory.by_process_gib.values()) <= memory.peak_gib + 1e-9


def test_pages_that_processes_share_count_once() -> None:
    code = (
        "import os, sys, time\n"
        "block = bytearray(os.urandom(1024)) * (120 * 1024)\n"
        "child = os.fork()\n"
        "print('ready', flush=True) if child else None\n"
        "time.sleep(20)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        family = run_processes(process.pid)
        assert len(family) == 2
        assert 115 * 2**20 < sum(measure(family).values()) < 180 * 2**20
    finally:
        for member in run_processes(process.pid):
            member.kill()
        process.communicate(timeout=10)


def test_processes_that_carry_the_marker_are_found() -> None:
    environment = {**os.environ, MARKER_NAME: "run-under-test"}
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(20)"], env=environment)
    try:
        deadline = time.monotonic() + 5.0
        found: set[int] = set()
        while process.pid not in found and time.monotonic() < deadline:
            found = {member.pid for member in run_processes(2**30, marker="run-under-test")}
        assert found == {process.pid}
    finally:
        process.kill()
        process.communicate(timeout=10)


def test_a_step_is_one_line_and_says_who_waits() -> None:
    metrics = {"step": 7, "reward_mean": 0.8123, "accuracy": 0.5, "tokens_per_s": 2100.4, "idle_generator": 0.1}
    assert step_line(metrics, 80) == "step 7/80  reward 0.812  accuracy 0.50  2,100 tok/s"
    assert step_line({}) == "step ?"
    assert who_waits({"idle_generator": 0.05, "idle_learner": 0.4}) == "learner waits for episodes (40 %)"
    assert who_waits({"idle_generator": 0.4, "idle_learner": 0.0}) == "generators wait for the learner (40 %)"
    assert who_waits({"idle_generator": 0.2, "idle_learner": 0.25}) == "balanced"


def test_a_log_gets_plain_lines_and_a_terminal_a_panel() -> None:
    log, terminal = (io.StringIO(), io.StringIO())
    for file, is_terminal in ((log, False), (terminal, True)):
        console = Console(file=file, force_terminal=is_terminal, width=100)
        with RunProgress("run", 2, console) as progress:
            with progress.phase("RL"):
                progress.advance(1, 2)
                progress.step({"step": 1, "reward_mean": 0.5})
                progress.note("generator-0 died, restarted [attempt 1]")
            with pytest.raises(KeyError), progress.phase("evaluation"):
                raise KeyError
        assert list(progress.phases_s) == ["RL", "evaluation"]
    lines = log.getvalue().splitlines()
    assert lines[:4] == ["RL …", "RL: 1 of 2", "step 1/2  reward 0.500", "generator-0 died, restarted [attempt 1]"]
    assert "\x1b" not in log.getvalue()
    assert "╭" in terminal.getvalue()
    assert "[attempt 1]" in terminal.getvalue()


def test_short_texts() -> None:
    assert (duration(3.14159), duration(125), duration(7322)) == ("3.1 s", "2 min 05 s", "2 h 02 min")
    assert sparkline([0.0, 1.0, 2.0]) == "▁▅█"
    assert (sparkline([]), sparkline([1.0, 1.0])) == ("", "▁▁")


def shown(renderable: Any) -> str:
    console = Console(file=io.StringIO(), width=160)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
