"""Intervals, paired differences, tables per arm and MED's terms, on episodes whose figures are known."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from medvista_ray.reports.statistics import (
    accuracy,
    behaviour,
    by_arm,
    families,
    mean_interval,
    med_terms,
    paired_difference,
)
from medvista_ray.reports.trajectory import EpisodeRecord, TrajectoryLog
from medvista_ray.types import EpisodeStatus
from tests.synthetic_run import make_episode, make_task, phantom

PICTURES = [phantom(0), phantom(1)]


def logged(folder: Path, arm: str, outcomes: Sequence[bool], tools: bool = True, **changes: object) -> list[EpisodeRecord]:
    with TrajectoryLog(folder) as log:
        return [
            log.append(make_episode(make_task(n), PICTURES, correct=right, tools=tools, **changes), arm, None)
            for n, right in enumerate(outcomes)
        ]


def test_the_interval_has_the_width_that_theory_gives() -> None:
    values = np.array([1.0] * 240 + [0.0] * 160)
    interval = mean_interval(values)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 400)
    assert interval.mean == pytest.approx(0.6)
    assert interval.ci95[0] == pytest.approx(0.6 - half, abs=0.012)
    assert interval.ci95[1] == pytest.approx(0.6 + half, abs=0.012)
    assert interval.n == 400


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(1)
    covered = 0
    for trial in range(200):
        low, high = mean_interval((generator.random(150) < 0.7).astype(np.float64), 400, seed=trial).ci95
        covered += low <= 0.7 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_the_same_seed_gives_the_same_interval() -> None:
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3)
    assert mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_an_empty_arm_has_no_interval() -> None:
    assert accuracy([]) is None
    assert paired_difference([], []) is None
    with pytest.raises(ValueError, match="at least one task"):
        mean_interval(np.array([]))


def test_pairing_over_tasks_narrows_the_difference(tmp_path: Path) -> None:
    base = [n % 2 == 0 for n in range(100)]
    better = [right or n % 10 == 1 for n, right in enumerate(base)]
    first, second = logged(tmp_path, "rl", better), logged(tmp_path, "sft", base)
    difference = paired_difference(first, second)
    assert difference is not None
    assert difference.mean == pytest.approx(0.10)
    assert difference.ci95[0] > 0.0  # unpaired it would be about +-0.14
    assert difference.ci95[1] < 0.18
    part = paired_difference(first[:40], second)
    assert part is not None
    assert part.n == 40


def test_failed_episodes_are_counted_but_never_scored(tmp_path: Path) -> None:
    records = logged(tmp_path, "rl", [True] * 8)
    failed = logged(tmp_path, "rl", [False] * 2, status=EpisodeStatus.FAILED)
    interval = accuracy([*records, *failed])
    assert interval is not None
    assert (interval.mean, interval.n) == (1.0, 8)
    row = behaviour([*records, *failed])
    assert (row.num_episodes, row.num_failed) == (10, 2)


def test_behaviour_counts_attempts_errors_and_tokens(tmp_path: Path) -> None:
    row = behaviour(logged(tmp_path, "rl", [True, True, True, False]))
    assert row.calls == {"zoom_in": 4, "measure": 4}
    assert row.error_codes == {"E3": 1, "E6": 1}
    assert row.calls_per_episode == 2.0
    assert row.used_tools == 1.0
    assert row.tokens_per_episode == 60.0
    without = behaviour(logged(tmp_path, "no_tools", [True, False], tools=False))
    assert (without.used_tools, without.calls_per_episode, without.calls) == (0.0, 0.0, {})


def test_of_a_task_that_was_evaluated_twice_the_last_counts(tmp_path: Path) -> None:
    records = [
        *logged(tmp_path, "rl", [False, True]),
        *logged(tmp_path, "rl", [True]),
        *logged(tmp_path, "train", [True]),
    ]
    arms = by_arm(records)
    assert list(arms) == ["rl"]
    assert [record.correct for record in arms["rl"]] == [True, True]


def test_families_have_their_own_rows(tmp_path: Path) -> None:
    with TrajectoryLog(tmp_path) as log:
        records = [
            log.append(make_episode(make_task(n, family), PICTURES, correct=right), "rl", None)
            for n, (family, right) in enumerate([("lesion_size", True), ("lesion_size", False), ("term_code", True)])
        ]
    table = families({"rl": records})
    assert {family: row.arms["rl"].mean for family, row in table.items()} == {"lesion_size": 0.5, "term_code": 1.0}
    assert table["term_code"].chance == 0.25


def test_med_terms_add_up_to_the_gap(tmp_path: Path) -> None:
    without = logged(tmp_path, "no_tools", [False, False, False, True, True, True, True, True], tools=False)
    called = logged(tmp_path, "rl", [True, True, False, False, True, True, True, True])
    silent = logged(tmp_path, "rl", [True, True, False, False, False, False, True, True], tools=False)
    with_tools = [*called[:1], silent[1], called[2], called[3], *silent[4:6], *called[6:]]
    terms = med_terms(without, with_tools)
    assert terms is not None
    assert (terms.call_gain, terms.schema_gain) == (1 / 8, 1 / 8)
    assert (terms.call_harm, terms.schema_harm) == (1 / 8, 2 / 8)
    first, second = accuracy(with_tools), accuracy(without)
    assert first is not None
    assert second is not None
    assert terms.gap == pytest.approx(first.mean - second.mean)
