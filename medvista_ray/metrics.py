"""Every metric of the loop: its name, unit and meaning, once.

Invariant: each key of a line of metrics.jsonl (and each TensorBoard tag, which is the same key) is declared here.
Written by `flow.stats` and the learner, read by reports, dashboards and tests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from medvista_ray.errors import InvariantError


@dataclass(frozen=True)
class Metric:
    """One number per learner step."""

    name: str
    unit: str
    meaning: str


_LOOP = (
    Metric("step", "count", "learner steps done since the run began, over restarts"),
    Metric("version", "count", "policy version that the step made"),
    Metric("time_s", "s", "since this process began the loop"),
    Metric("step_s", "s", "from the end of the step before to the end of this one"),
    Metric("train_s", "s", "the optimiser step"),
    Metric("publish_s", "s", "writing the new version where engines can read it"),
    Metric("reward_mean", "reward", "mean over the episodes finished since the step before, filtered groups included"),
    Metric("reward_trained_mean", "reward", "mean over the trained batch"),
    Metric("accuracy", "fraction", "right answers among the episodes that finished since the step before"),
    Metric("answered_frac", "fraction", "episodes that ended with an answer, among those"),
    Metric("format_ok", "fraction", "episodes whose every turn was well formed, among those"),
    Metric("calls_per_episode", "count", "tool calls that ran without an error, mean over those"),
    Metric("used_tools_frac", "fraction", "episodes with at least one such call, among those"),
    Metric("errors_per_episode", "count", "errors E1..E5, mean over those"),
    Metric("episode_s", "s", "mean duration of those episodes"),
    Metric("sampled_tokens_mean", "tokens", "sampled tokens of an episode, mean over those"),
    Metric("num_episodes", "count", "episodes that finished since the step before"),
    Metric("tokens_per_s", "tokens/s", "sampled tokens of those episodes by the step's time"),
    Metric("staleness_mean", "versions", "learner's version less the sampling one, mean over the batch's tokens"),
    Metric("staleness_max", "versions", "the same for the oldest token of the batch; never above eta"),
    Metric("num_submitted", "groups", "groups made since the run began"),
    Metric("num_waiting", "groups", "of these, waiting for a generator"),
    Metric("num_running", "groups", "of these, in a generator"),
    Metric("num_ready", "groups", "of these, in the learner's inbox"),
    Metric("num_trained", "groups", "of these, trained"),
    Metric("num_filtered", "groups", "of these, without any difference in reward"),
    Metric("num_failed", "groups", "of these, given up"),
    Metric("num_generator_faults", "count", "generators that died, hung or failed"),
    Metric("num_weight_updates", "count", "in-flight loads of new versions, over all generators"),
    Metric("weight_update_s", "s", "mean time that engines took to load since the step before"),
    Metric("weight_pause_s", "s", "mean time that generation was paused for it"),
    Metric("idle_generator", "fraction", "mean share of the loop's time in which a generator had no group"),
    Metric("idle_learner", "fraction", "share of the loop's time in which the learner did nothing"),
)
# Means over trained tokens are over those that the step computed: episodes with an advantage (see trainers.grpo).
_LEARNER = (
    Metric("loss", "nats", "policy-gradient loss, mean over trained tokens"),
    Metric("grad_norm", "norm", "global gradient norm before clipping"),
    Metric("entropy", "nats", "entropy of the next-token distribution, mean over trained tokens"),
    Metric("mismatch_kl", "nats", "divergence (k3) of the learner from the sampling policy, mean over trained tokens"),
    Metric("reference_kl", "nats", "divergence (k3) from the policy after SFT; 0 without a KL term"),
    Metric("clip_frac", "fraction", "trained tokens whose ratio was clipped"),
    Metric("tis_frac", "fraction", "trained tokens whose importance weight was truncated"),
    Metric("masked_frac", "fraction", "trained tokens that the correction left out"),
    Metric("ratio_mean", "ratio", "learner's probability over the sampling one, mean over trained tokens"),
    Metric("ratio_min", "ratio", "smallest such ratio"),
    Metric("ratio_max", "ratio", "largest such ratio"),
    *(
        Metric(name, "fraction", f"trained tokens with such a ratio from {low} up to {high}")
        for name, low, high in (
            ("ratio_hist_0", "0", "0.5"),
            ("ratio_hist_1", "0.5", "0.8"),
            ("ratio_hist_2", "0.8", "0.95"),
            ("ratio_hist_3", "0.95", "1.05"),
            ("ratio_hist_4", "1.05", "1.25"),
            ("ratio_hist_5", "1.25", "2"),
            ("ratio_hist_6", "2", "any"),
        )
    ),
    Metric("reward_mean", "reward", "mean over the trained episodes"),
    Metric("num_episodes", "count", "trained episodes"),
    Metric("num_tokens", "tokens", "tokens of the trained episodes, observations included"),
    Metric("num_trained_tokens", "tokens", "sampled tokens among them"),
    Metric("version_min", "version", "oldest version that sampled one of them"),
    Metric("version_max", "version", "newest version that sampled one of them"),
    Metric("version_span", "versions", "newest less oldest version within one episode, the largest of the batch"),
    Metric("duration_s", "s", "the optimiser step as the learner measured it"),
    Metric("tokens_per_s", "tokens/s", "trained tokens by that time"),
)
_AMBIGUOUS = frozenset(m.name for m in _LOOP) | {"duration_s", "num_tokens"}


def learner_name(name: str) -> str:
    """The metric under which the learner's `name` is recorded: prefixed where the loop has one of that name."""
    return f"learner_{name}" if name in _AMBIGUOUS else name


METRICS = {m.name: m for m in _LOOP} | {learner_name(m.name): replace(m, name=learner_name(m.name)) for m in _LEARNER}
"""By name."""


def undeclared(names: Iterable[str]) -> list[str]:
    """The names that no metric has."""
    return sorted(set(names) - METRICS.keys())


def check_declared(names: Iterable[str]) -> None:
    """Raise InvariantError if a name is not declared here."""
    if missing := undeclared(names):
        raise InvariantError(f"metrics {missing} are not declared in medvista_ray.metrics")
