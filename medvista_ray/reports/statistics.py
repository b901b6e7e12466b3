"""What the evaluation arms say: accuracies with intervals, paired differences, tool use, and MED's four terms.

Pure functions over `EpisodeRecord`s; seeded, so that the same log gives the same figures. Intervals come from the
percentile bootstrap over TASKS: they speak for more questions on these subjects, not for new subjects.
Episodes whose infrastructure failed are not scored and never enter an accuracy.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from medvista_ray.reports.trajectory import EpisodeRecord
from medvista_ray.types import EpisodeStatus

ARMS = ("no_tools", "naive", "sft", "rl")
NUM_BOOTSTRAP = 2000


class Frozen(BaseModel):
    """Base of the result models."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Interval(Frozen):
    """A mean (0..1, or a difference of such means) with its 95 % bootstrap interval."""

    mean: float
    ci95: tuple[float, float]
    n: int
    """Tasks behind it."""


class ArmBehaviour(Frozen):
    """How one arm behaves, besides being right."""

    num_episodes: int
    num_failed: int
    """Episodes that infrastructure ended; not scored."""
    answered: float
    """Share of scored episodes that ended with an answer."""
    used_tools: float
    """Share with at least one tool call that ran without an error."""
    calls_per_episode: float
    """Mean number of attempted calls."""
    tokens_per_episode: float
    """Mean number of sampled tokens."""
    calls: dict[str, int]
    """Attempted calls by tool name."""
    error_codes: dict[str, int]
    """Errors by code (E1..E6)."""


class FamilyAccuracy(Frozen):
    """One question family."""

    chance: float
    """Accuracy of a blind guess."""
    arms: dict[str, Interval]


class MedTerms(Frozen):
    """MED's decomposition of the gap with tools minus without (arXiv 2602.01334): shares of the paired tasks.

    `gap == call_gain + schema_gain - call_harm - schema_harm`; "call" terms made at least one call.
    """

    call_gain: float
    """Wrong without tools, right with them."""
    schema_gain: float
    call_harm: float
    """Right without tools, wrong with them."""
    schema_harm: float
    gap: float
    n: int


def scored(records: Iterable[EpisodeRecord]) -> list[EpisodeRecord]:
    """Without the episodes that infrastructure ended."""
    return [record for record in records if record.status is not EpisodeStatus.FAILED]


def by_arm(records: Iterable[EpisodeRecord]) -> dict[str, list[EpisodeRecord]]:
    """Evaluation episodes by arm, in `ARMS` order; of a task evaluated twice (a resumed run) the last counts."""
    latest: defaultdict[str, dict[str, EpisodeRecord]] = defaultdict(dict)
    for record in records:
        if record.arm in ARMS:
            latest[record.arm][record.task_id] = record
    return {arm: list(latest[arm].values()) for arm in ARMS if arm in latest}


def mean_interval(values: NDArray[np.float64], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> Interval:
    """Mean of `values` [N] with its 95 % percentile-bootstrap interval. Raises ValueError if N is 0."""
    if values.size == 0:
        raise ValueError("values: an interval needs at least one task, found none")
    draws = np.random.default_rng(seed).integers(0, values.size, size=(num_bootstrap, values.size))
    means = values[draws].mean(axis=1)
    ci95 = (float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975)))
    return Interval(mean=float(values.mean()), ci95=ci95, n=int(values.size))


def accuracy(records: Iterable[EpisodeRecord], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0) -> Interval | None:
    """Share of right answers with its interval; None if nothing was scored."""
    values = np.array([record.correct for record in scored(records)], dtype=np.float64)
    return mean_interval(values, num_bootstrap, seed) if values.size else None


def paired_difference(
    first: Iterable[EpisodeRecord], second: Iterable[EpisodeRecord], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0
) -> Interval | None:
    """Accuracy of `first` minus `second` over the tasks that both scored, resampled as pairs; None without any."""
    pairs = _pairs(first, second)
    values = np.array([float(a.correct) - float(b.correct) for a, b in pairs], dtype=np.float64)
    return mean_interval(values, num_bootstrap, seed) if values.size else None


def behaviour(records: Sequence[EpisodeRecord]) -> ArmBehaviour:
    """Tool use and error codes of one arm."""
    kept = scored(records)
    calls = Counter(turn.tool for record in kept for turn in record.turns if turn.tool is not None)
    codes = Counter(code.value for record in kept for code in record.error_codes)
    return ArmBehaviour(
        num_episodes=len(records),
        num_failed=len(records) - len(kept),
        answered=_mean(record.status is EpisodeStatus.ANSWERED for record in kept),
        used_tools=_mean(record.num_calls > 0 for record in kept),
        calls_per_episode=_mean(record.num_attempts for record in kept),
        tokens_per_episode=_mean(record.num_sampled for record in kept),
        calls=dict(calls.most_common(20)),  # names are the policy's own: bounded
        error_codes=dict(sorted(codes.items())),
    )


def families(
    arms: Mapping[str, Sequence[EpisodeRecord]], num_bootstrap: int = NUM_BOOTSTRAP, seed: int = 0
) -> dict[str, FamilyAccuracy]:
    """Accuracy of each question family in each arm."""
    cells: defaultdict[str, defaultdict[str, list[EpisodeRecord]]] = defaultdict(lambda: defaultdict(list))
    for arm, records in arms.items():
        for record in scored(records):
            cells[record.family][arm].append(record)
    table: dict[str, FamilyAccuracy] = {}
    for family, per_arm in sorted(cells.items()):
        intervals = {arm: accuracy(records, num_bootstrap, seed) for arm, records in per_arm.items()}
        chance = _mean(record.chance for records in per_arm.values() for record in records)
        table[family] = FamilyAccuracy(chance=chance, arms={arm: i for arm, i in intervals.items() if i})
    return table


def med_terms(without: Iterable[EpisodeRecord], with_tools: Iterable[EpisodeRecord]) -> MedTerms | None:
    """MED's four terms over the tasks that both arms scored; None if there are none.

    The paper pairs one checkpoint with itself. Between different weights the gap also holds what training taught.
    """
    pairs = _pairs(without, with_tools)
    if not pairs:
        return None
    counts = Counter((a.correct, b.correct, b.num_attempts > 0) for a, b in pairs)
    share = {key: count / len(pairs) for key, count in counts.items()}
    terms = {
        "call_gain": share.get((False, True, True), 0.0),
        "schema_gain": share.get((False, True, False), 0.0),
        "call_harm": share.get((True, False, True), 0.0),
        "schema_harm": share.get((True, False, False), 0.0),
    }
    gap = terms["call_gain"] + terms["schema_gain"] - terms["call_harm"] - terms["schema_harm"]
    return MedTerms(**terms, gap=gap, n=len(pairs))


def _pairs(first: Iterable[EpisodeRecord], second: Iterable[EpisodeRecord]) -> list[tuple[EpisodeRecord, EpisodeRecord]]:
    other = {record.task_id: record for record in scored(second)}
    return [(record, other[record.task_id]) for record in scored(first) if record.task_id in other]


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return sum(numbers) / len(numbers) if numbers else 0.0
