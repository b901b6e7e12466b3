"""The figures of the pipeline benchmark: the injected latency, idle shares from cumulative ones, ratios between modes."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from benchmarks.latency import LogNormal
from benchmarks.pipeline import compare, figures
from medvista_ray.config import TrainConfig


def test_the_latency_has_the_mean_and_the_99th_percentile_that_it_says() -> None:
    latency, rng = LogNormal(mean_s=0.3, p99_s=3.0), random.Random(0)
    drawn = np.array([latency.draw(rng) for _ in range(200_000)])
    assert drawn.mean() == pytest.approx(0.3, rel=0.03)
    assert np.percentile(drawn, 99) == pytest.approx(3.0, rel=0.03)


def record(step: int, time_s: float, idle_learner: float) -> dict[str, float]:
    names = ("num_episodes", "num_trained_tokens", "publish_s", "train_s", "num_filtered", "num_submitted", "reward_mean")
    values = dict.fromkeys(names, 1.0) | {"num_submitted": 4.0 * step, "num_filtered": float(step)}
    return values | {"step": step, "time_s": time_s, "step_s": 10.0, "idle_learner": idle_learner, "idle_generator": 0.0}


def test_figures_are_those_of_the_window_and_not_of_the_start() -> None:
    marks = [(record(1, 50.0, 0.9), 150.0, 10.0), (record(2, 60.0, 0.8), 160.0, 15.0), (record(3, 70.0, 0.7), 170.0, 28.0)]
    config = TrainConfig.model_validate({"grpo": {"groups_per_step": 4, "group_size": 5}})
    found = figures(marks, {"staleness_histogram": {0: 3, 1: 4}}, config)
    assert found["trained_episodes_per_s"] == pytest.approx(2 * 4 * 5 / 20.0)
    assert found["learner_idle_frac"] == pytest.approx((0.7 * 70 - 0.9 * 50) / 20.0)
    assert found["generator_idle_frac"] == pytest.approx(1.0 - 18.0 / 20.0)
    assert found["filtered_frac"] == pytest.approx(0.25)
    assert found["staleness"] == {"0": 3, "1": 4}


def test_modes_are_compared_by_rate_and_reward_with_its_noise() -> None:
    def mode(rate: float, rewards: list[float]) -> dict[str, Any]:
        return {"trained_episodes_per_s": rate, "rewards": rewards, "staleness": {"0": 1}}

    found = compare({"sync": mode(2.0, [0.5, 0.6, 0.7]), "async": mode(5.0, [0.6, 0.6, 0.6])})
    assert found["async_over_sync"] == 2.5
    assert "async_over_one_step_off" not in found
    assert found["reward_gap_at_equal_samples"] == pytest.approx(0.0)
    assert found["reward_noise"] == pytest.approx(2 * (0.01 / 3) ** 0.5, abs=1e-4)
    assert compare({"sync": mode(1.0, [0.5])}) == {}
