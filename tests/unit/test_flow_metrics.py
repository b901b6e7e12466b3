"""What a step records: declared, right, and bounded."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medvista_ray.errors import InvariantError
from medvista_ray.flow.recorder import MetricsRecorder
from medvista_ray.flow.stats import StepStats, learner_metrics
from medvista_ray.metrics import METRICS, undeclared
from medvista_ray.reports.html import CURVES
from medvista_ray.types import EpisodeStatus, ErrorCode, Group, Turn
from tests.scripted_flow import (
    SETTINGS,
    ScriptedGenerator,
    ScriptedLearner,
    World,
    make_episode,
    make_tasks,
    simulate,
)

TASK = make_tasks(1)[0]


class Scalars:
    """Keeps what a SummaryWriter would draw."""

    def __init__(self) -> None:
        self.values: list[tuple[str, float, int]] = []

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.values.append((tag, scalar_value, global_step))

    def flush(self) -> None: ...


def test_every_key_that_the_loop_writes_is_declared(tmp_path: Path) -> None:
    scalars = Scalars()

    async def main() -> None:
        world = World(SETTINGS, [ScriptedGenerator("generator-0")], ScriptedLearner())
        world.loop._recorder = MetricsRecorder(tmp_path, scalars)
        await world.run(4)

    simulate(main())
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert undeclared({key for line in lines for key in line}) == []
    loop_metrics = [name for name in METRICS if name in lines[-1]]
    assert len(loop_metrics) > 30
    assert ("version", 5.0, 4) in scalars.values


def test_every_metric_that_the_trainer_returns_is_declared(root: Path) -> None:
    text = (root / "trainers" / "grpo.py").read_text()
    bodies = re.findall(r"def (?:_metrics|_batch_metrics)\(.*?(?=\ndef |\Z)", text, flags=re.S)
    names = [name for body in bodies for name in re.findall(r'^        "(\w+)":', body, flags=re.M)]
    assert len(names) > 10
    assert undeclared(learner_metrics(dict.fromkeys(names, 0.0))) == []


def test_every_curve_of_the_report_is_a_metric() -> None:
    assert undeclared(key for curve in CURVES for key, _ in curve.metrics) == []


def test_an_undeclared_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvariantError, match="'typo'"):
        MetricsRecorder(tmp_path).append({"step": 1.0, "typo": 0.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_a_steps_means_are_over_the_scored_episodes_that_finished() -> None:
    right, wrong, lost = (make_episode(TASK, [1, 1], reward) for reward in (1.4, 0.0, 0.0))
    right.turns = [Turn(text="", tool="zoom_in"), Turn(text="", tool="zoom_in", error=ErrorCode.E3)]
    right.error_codes = (ErrorCode.E3,)
    right.reward_parts = {"format": 0.2}
    wrong.error_codes = (ErrorCode.E6,)
    lost.status = EpisodeStatus.FAILED
    stats = StepStats(eta=1)
    stats.add_finished(Group(id=0, episodes=[right, wrong, lost], version_admitted=1))
    record: dict[str, Any] = stats.close_step(step_s=2.0)
    assert record["num_episodes"] == 2
    assert record["reward_mean"] == pytest.approx(0.7)
    assert record["accuracy"] == 0.5
    assert record["calls_per_episode"] == 0.5
    assert record["used_tools_frac"] == 0.5
    assert record["errors_per_episode"] == 0.5, "E6 is a wrong answer, not an error of form"
    assert record["format_ok"] == 0.5
    assert record["tokens_per_s"] == 2.0
    assert stats.close_step(1.0) == {"num_episodes": 0.0}


def test_staleness_counts_sampled_tokens_only_and_is_checked() -> None:
    stats = StepStats(eta=2)
    batch = [Group(id=0, episodes=[make_episode(TASK, [3, 4, 5, 5], 1.0)], version_admitted=3)]
    record = stats.add_trained(batch, version=5)
    assert record["staleness_max"] == 2
    assert record["staleness_mean"] == pytest.approx(np.mean([2, 1, 0, 0]))
    assert stats.staleness == {0: 2, 1: 1, 2: 1}
    with pytest.raises(InvariantError, match="eta=2"):
        stats.add_trained(batch, version=6)
    with pytest.raises(InvariantError, match="versions old"):
        stats.add_trained(batch, version=4)
