"""Format + accuracy + tool bonus paid only when the answer is right (MedVistaGym, arXiv 2601.07107).

Invariant: the bonus never pays for calling, only for being right after at least one clean call, and six calls pay no
more than one; a FAILED episode (infrastructure) is never scored. Called by generators, by the expert's filter and the
evaluation.
"""

from __future__ import annotations

from dataclasses import replace

from medvista_ray.config import RewardConfig
from medvista_ray.rewards.diagnosis import diagnose
from medvista_ray.tasks.scoring import is_right
from medvista_ray.types import Episode, EpisodeStatus, ErrorCode


def score(episode: Episode, config: RewardConfig) -> Episode:
    """A copy with reward, reward_parts, correct and error_codes; the token arrays are shared."""
    codes = tuple(turn.error for turn in episode.turns if turn.error is not None)
    if episode.status is EpisodeStatus.FAILED:
        return replace(episode, reward=0.0, reward_parts={}, correct=False, error_codes=codes)
    answered = episode.status is EpisodeStatus.ANSWERED
    correct = answered and is_right(episode.task, episode.answer)
    well_formed = answered and ErrorCode.E1 not in codes
    parts = {
        "format": config.format if well_formed else -config.format,
        "accuracy": config.accuracy if correct else 0.0,
        "tool_bonus": config.tool_bonus if correct and episode.num_calls else 0.0,
    }
    if answered and not correct and not codes and episode.num_calls:
        codes = (diagnose(episode.task, episode.turns),)
    return replace(episode, reward=sum(parts.values()), reward_parts=parts, correct=correct, error_codes=codes)
