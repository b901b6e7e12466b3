"""The scripted expert solves the bench with the real tools, in process, on test subjects."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from medvista_ray.config import BenchConfig, ExpertConfig, TrainConfig
from medvista_ray.models.policy import load_inputs, resolve_policy
from medvista_ray.tasks.bench.families import SETS
from medvista_ray.tasks.bench.source import MedVistaBench
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import Episode, Split
from trainers.cold_start import Trajectories, collect_trajectories

pytestmark = pytest.mark.assets
NUM_TASKS = 60


@pytest.fixture(scope="module")
def config() -> TrainConfig:
    return TrainConfig(bench=BenchConfig(seed=2, num_test=NUM_TASKS), expert=ExpertConfig(concurrency=4))


@pytest.fixture(scope="module")
def client(config: TrainConfig) -> Iterator[LocalToolClient]:
    client = LocalToolClient(config.tools.names)
    yield client
    client.close()


@pytest.fixture(scope="module")
def found(config: TrainConfig, client: LocalToolClient) -> Trajectories:
    source = MedVistaBench(config.bench)
    inputs = load_inputs(Path(resolve_policy(config.policy)))
    return asyncio.run(collect_trajectories(source.tasks(Split.TEST), source, client, inputs, config))


def test_the_expert_solves_most_tasks_of_unseen_subjects(found: Trajectories) -> None:
    assert len(found.kept) >= 0.9 * NUM_TASKS, found.num_dropped


def test_every_family_is_solved_and_by_its_planned_tools(found: Trajectories) -> None:
    by_family = Counter(episode.task.family for episode in found.kept)
    assert set(by_family) == set(SETS["core"])
    for episode in found.kept:
        assert tuple(turn.tool for turn in episode.turns if turn.tool) == episode.task.plan, episode.task.id


def test_kept_trajectories_train_the_experts_tokens_only(found: Trajectories) -> None:
    for episode in found.kept:
        assert 0 < episode.num_sampled < len(episode.token_ids)
        assert _text_of_images_is_masked(episode)


def _text_of_images_is_masked(episode: Episode) -> bool:
    """Pictures enter the context, and none of their tokens is trained."""
    num_zooms = sum(turn.tool == "zoom_in" for turn in episode.turns)
    return len(episode.images) == episode.task.num_images + num_zooms and not episode.loss_mask[0]
