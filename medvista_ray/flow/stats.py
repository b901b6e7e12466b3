"""What a step of the loop was like, computed from its groups: one flat record of numbers per learner step.

Owns the sums since the last step and the staleness histogram of the whole run. Invariant: no trained token is staler
than eta or newer than the learner. Called by `flow.loop`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from medvista_ray.errors import InvariantError
from medvista_ray.metrics import learner_name
from medvista_ray.types import Episode, EpisodeStatus, Group


class StepStats:
    """Collects finished groups; `close_step` turns them into a record and begins anew."""

    def __init__(self, eta: int) -> None:
        self._eta = eta
        self._finished: list[dict[str, float]] = []
        self._load_seconds: list[dict[str, float]] = []
        self.staleness: Counter[int] = Counter()
        """Trained tokens by staleness in versions, over the whole run."""

    def add_finished(self, group: Group) -> None:
        """A group came back, whatever becomes of it. Keeps numbers only, no episode."""
        self._finished += [_episode_row(e) for e in group.episodes if e.status is not EpisodeStatus.FAILED]

    def add_load(self, seconds: dict[str, float]) -> None:
        """An engine loaded a version."""
        self._load_seconds.append(seconds)

    def add_trained(self, groups: Sequence[Group], version: int) -> dict[str, float]:
        """The learner at `version` trained `groups`: staleness and reward of the batch.

        Raises InvariantError if a token is staler than eta, or sampled by a version of the future.
        """
        episodes = [episode for group in groups for episode in group.episodes]
        ages = version - np.concatenate([episode.versions[episode.loss_mask] for episode in episodes])
        if ages.size and not 0 <= int(ages.min()) <= int(ages.max()) <= self._eta:
            raise InvariantError(f"tokens {ages.min()}..{ages.max()} versions old were trained, eta={self._eta}")
        values, nums = np.unique(ages, return_counts=True)
        self.staleness.update(dict(zip(values.tolist(), nums.tolist(), strict=True)))
        return {
            "staleness_mean": float(ages.mean()) if ages.size else 0.0,
            "staleness_max": float(ages.max()) if ages.size else 0.0,
            "reward_trained_mean": mean(episode.reward for episode in episodes),
        }

    def close_step(self, step_s: float) -> dict[str, float]:
        """Means over what finished since the last call; absent if nothing did."""
        rows, loads = self._finished, self._load_seconds
        self._finished, self._load_seconds = [], []
        record = {"num_episodes": float(len(rows))}
        if rows:
            record |= {name: mean(row[name] for row in rows) for name in rows[0]}
            record["tokens_per_s"] = sum(row["sampled_tokens_mean"] for row in rows) / max(step_s, 1e-9)
        if loads:
            record["weight_update_s"] = mean(load.get("update_s", 0.0) for load in loads)
            record["weight_pause_s"] = mean(load.get("pause_s", 0.0) for load in loads)
        return record


def learner_metrics(metrics: dict[str, float]) -> dict[str, float]:
    """The learner's own metrics; what the loop measures too gets a prefix."""
    return {learner_name(name): float(value) for name, value in metrics.items()}


def mean(values: Iterable[float]) -> float:
    """Arithmetic mean, 0 of nothing."""
    found = list(values)
    return float(sum(found) / len(found)) if found else 0.0


def _episode_row(episode: Episode) -> dict[str, float]:
    # What an oracle says of a wrong answer (E6, or E4 for its aim) is in error_codes alone: no error of form.
    errors = [turn.error for turn in episode.turns if turn.error is not None]
    return {
        "reward_mean": episode.reward,
        "format_ok": float(episode.reward_parts.get("format", 0.0) > 0.0),
        "accuracy": float(episode.correct),
        "answered_frac": float(episode.status is EpisodeStatus.ANSWERED),
        "calls_per_episode": float(episode.num_calls),
        "used_tools_frac": float(episode.num_calls > 0),
        "errors_per_episode": float(len(errors)),
        "episode_s": episode.duration_s,
        "sampled_tokens_mean": float(episode.num_sampled),
    }
