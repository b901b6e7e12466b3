"""The SkyRL-Gym adapter inside the real skyrl-gym."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from medvista_ray.envs.setup import EnvSettings, Workshop
from medvista_ray.errors import ConfigError
from medvista_ray.rollout.pictures import policy_picture
from tests.unit.scripted_engine import ramp_picture
from tests.unit.test_envs_gym import RIGHT, WRONG, ZOOM, ThreeTasks

skyrl_gym = pytest.importorskip("skyrl_gym")


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    from medvista_ray.envs.adapters.skyrl import register

    shop = Workshop(EnvSettings(tools=("zoom_in",), image_side=32, max_calls=2), source=ThreeTasks())
    register(shop)
    yield shop
    shop.close()


def test_skyrl_plays_an_episode_with_pictures_and_our_reward(workshop: Workshop) -> None:
    from medvista_ray.envs.adapters.skyrl import dataset_rows

    row = dataset_rows(workshop)[1]
    env = skyrl_gym.make(row["env_class"], env_config={}, extras=row)
    prompt, info = env.init(row["prompt"])
    assert [message["role"] for message in prompt] == ["system", "user"]
    assert info == {"task_id": "t1"}
    uri = prompt[1]["content"][0]["image_url"]["url"]
    shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))
    assert np.array_equal(shown, policy_picture(ramp_picture(seed=1), 32))
    out = env.step(ZOOM)
    assert (out["done"], out["reward"]) == (False, 0.0)
    assert out["observations"][0]["content"][0]["type"] == "image_url"
    out = env.step(RIGHT)
    assert (out["done"], out["observations"]) == (True, [])
    assert out["reward"] == pytest.approx(1.4)
    assert env.get_metrics()["correct"] == 1.0


def test_a_wrong_answer_counts_as_e6_and_metrics_aggregate(workshop: Workshop) -> None:
    metrics = []
    for answer in (RIGHT, WRONG):
        env = skyrl_gym.make("medvista", env_config={}, extras={"task_id": "t0"})
        env.init([])
        env.step(ZOOM)
        env.step(answer)
        metrics.append(env.get_metrics())
    assert [one["num_E6"] for one in metrics] == [0, 1]
    assert type(env).aggregate_metrics(metrics)["correct"] == 0.5


def test_too_many_turns_end_the_episode_as_truncated(workshop: Workshop) -> None:
    env = skyrl_gym.make("medvista", env_config={}, extras={"task_id": "t0"})
    env.init([])
    assert [env.step(ZOOM)["done"] for _ in range(env.max_turns)] == [False, False, True]
    assert env.get_metrics()["correct"] == 0.0


def test_a_row_without_a_task_is_a_clear_error(workshop: Workshop) -> None:
    with pytest.raises(ConfigError, match="task_id"):
        skyrl_gym.make("medvista", env_config={}, extras={})
