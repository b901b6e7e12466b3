"""The composite reward: what pays, what costs, and what is never scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medvista_ray.config import RewardConfig
from medvista_ray.rewards.catalog import REWARDS
from medvista_ray.rewards.composite import score
from medvista_ray.types import Episode, EpisodeStatus, ErrorCode, Turn
from tests.unit.scripted_engine import make_task

CONFIG = RewardConfig(format=0.2, accuracy=1.0, tool_bonus=0.3)
CALL = Turn(text="c", tool="zoom_in")
LAST = Turn(text="a")


def episode(answer: str | None, *turns: Turn, **fields: Any) -> Episode:
    status = EpisodeStatus.TRUNCATED if answer is None else EpisodeStatus.ANSWERED
    values: dict[str, Any] = {
        "task": make_task(),
        "status": status,
        "turns": list(turns),
        "answer": answer,
        "token_ids": np.zeros(1, np.int32),
        "loss_mask": np.ones(1, np.bool_),
        "logprobs": np.zeros(1, np.float32),
        "versions": np.zeros(1, np.int32),
        "images": [],
    }
    return Episode(**{**values, **fields})


def failed(code: ErrorCode) -> Turn:
    return Turn(text="c", tool="zoom_in", error=code)


@pytest.mark.parametrize(
    ("played", "reward"),
    [
        (episode("spleen", CALL, LAST), 0.2 + 1.0 + 0.3),
        (episode("spleen", *[CALL] * 6, LAST), 0.2 + 1.0 + 0.3),
        (episode("spleen", LAST), 0.2 + 1.0),
        (episode("spleen", failed(ErrorCode.E4), LAST), 0.2 + 1.0),
        (episode("spleen", failed(ErrorCode.E1), CALL, LAST), -0.2 + 1.0 + 0.3),
        (episode("liver", CALL, LAST), 0.2),
        (episode("liver", *[CALL] * 6, LAST), 0.2),
        (episode("liver", failed(ErrorCode.E1), LAST), -0.2),
        (episode(None, CALL, CALL), -0.2),
        (episode("spleen", CALL, status=EpisodeStatus.TRUNCATED), -0.2),
    ],
)
def test_the_reward_is_the_sum_of_its_parts(played: Episode, reward: float) -> None:
    scored = score(played, CONFIG)
    assert scored.reward == pytest.approx(reward)
    assert sum(scored.reward_parts.values()) == pytest.approx(reward)
    assert set(scored.reward_parts) == {"format", "accuracy", "tool_bonus"}


def test_only_an_answered_episode_is_correct() -> None:
    assert score(episode("Spleen.", LAST), CONFIG).correct
    assert not score(episode("liver", LAST), CONFIG).correct
    assert not score(episode(None, CALL), CONFIG).correct


def test_e6_needs_clean_calls_and_a_wrong_answer() -> None:
    assert score(episode("liver", CALL, LAST), CONFIG).error_codes == (ErrorCode.E6,)
    assert score(episode("spleen", CALL, LAST), CONFIG).error_codes == ()
    assert score(episode("liver", LAST), CONFIG).error_codes == ()
    assert score(episode(None, CALL), CONFIG).error_codes == ()
    mixed = episode("liver", failed(ErrorCode.E3), CALL, failed(ErrorCode.E2), LAST)
    assert score(mixed, CONFIG).error_codes == (ErrorCode.E3, ErrorCode.E2)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ({"bbox": [100, 100, 300, 300]}, ErrorCode.E6),
        ({"bbox": [0, 0, 250, 250]}, ErrorCode.E6),
        ({"bbox": [600, 600, 900, 900]}, ErrorCode.E4),
        ({"bbox": [0, 0, 120, 120]}, ErrorCode.E4),
        ({"bbox": [600, 600, 900, 900], "reference_bbox": [90, 90, 310, 310]}, ErrorCode.E6),
        ({"bbox": [600, 600, 900, 900], "image_index": 1}, ErrorCode.E6),
        ({"mask_index": 0}, ErrorCode.E6),
    ],
)
def test_the_oracle_tells_a_wrong_aim_from_a_wrong_reading(arguments: dict[str, Any], code: ErrorCode) -> None:
    task = make_task(regions=((100, 100, 300, 300),))
    call = Turn(text="c", tool="zoom_in", arguments=arguments)
    scored = score(episode("liver", call, LAST, task=task), CONFIG)
    assert scored.error_codes == (code,)
    assert scored.reward == pytest.approx(0.2), "the label pays and costs nothing"
    assert score(episode("liver", call, LAST), CONFIG).error_codes == (ErrorCode.E6,), "no gold region, no verdict on the aim"


def test_an_infrastructure_failure_is_not_scored() -> None:
    scored = score(episode(None, CALL, status=EpisodeStatus.FAILED), CONFIG)
    assert (scored.reward, scored.reward_parts, scored.correct) == (0.0, {}, False)


def test_scoring_leaves_its_argument_alone_and_shares_the_tokens() -> None:
    played = episode("spleen", CALL, LAST)
    scored = score(played, CONFIG)
    assert played.reward == 0.0
    assert scored.token_ids is played.token_ids
    assert score(scored, CONFIG) == scored


def test_the_reward_is_found_by_its_name() -> None:
    assert REWARDS.load("composite") is score
