"""The real loop with parts that never answer, in simulated time: every wait has an end."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from medvista_ray.flow.slots import Limits
from medvista_ray.types import Group
from tests.scripted_flow import SETTINGS, ScriptedGenerator, ScriptedLearner, World, simulate

NUM_STEPS = 5


class HangsInLoad(ScriptedGenerator):
    """In its first life it never finishes a second load."""

    async def load_version(self, manifest: str) -> dict[str, float]:
        if self.num_lives == 1 and self.loaded:
            await asyncio.Event().wait()
        return await super().load_version(manifest)


class HangsInReady(ScriptedGenerator):
    """Its second life never comes up."""

    async def ready(self) -> None:
        if self.num_lives == 2:
            await asyncio.Event().wait()
        await super().ready()


class HangingLearner(ScriptedLearner):
    """Never answers one of its calls: the one of that name and number."""

    def __init__(self, name: str, number: int) -> None:
        super().__init__()
        self._name, self._num_left = name, number

    async def train(self, groups: list[Group]) -> dict[str, float]:
        await self._hang_if_due("train")
        return await super().train(groups)

    async def publish(self, version: int) -> str:
        await self._hang_if_due("publish")
        return await super().publish(version)

    async def save(self, path: str, extra: dict[str, Any]) -> None:
        await self._hang_if_due("save")
        await super().save(path, extra)

    async def _hang_if_due(self, name: str) -> None:
        self._num_left -= name == self._name
        if self._num_left == 0:
            await asyncio.Event().wait()


async def run_alone(generator: ScriptedGenerator, limits: Limits, first_death_s: float | None = None) -> World:
    """A whole run that has no other generator to go on with."""
    world = World(replace(SETTINGS, limits=limits), [generator], ScriptedLearner())
    if first_death_s is not None:
        asyncio.get_running_loop().call_later(first_death_s, generator.die)
    await world.run(NUM_STEPS)
    assert sum(world.learner.trained.values()) == NUM_STEPS * SETTINGS.batch_groups
    return world


def test_a_generator_that_never_finishes_a_load_is_restarted() -> None:
    world: World = simulate(run_alone(HangsInLoad("generator-0"), Limits(load_s=30.0)))
    assert world.generators[0].num_lives == 2


def test_a_generator_that_never_comes_back_from_its_death_is_tried_again() -> None:
    world: World = simulate(run_alone(HangsInReady("generator-0"), Limits(ready_s=30.0), first_death_s=5.0))
    assert world.generators[0].num_lives == 3


@pytest.mark.parametrize(("call", "number"), [("publish", 1), ("train", 1), ("publish", 2), ("save", 1)])
def test_a_learner_that_never_answers_ends_the_run(call: str, number: int) -> None:
    async def main() -> None:
        settings = replace(SETTINGS, limits=Limits(learner_s=60.0))
        await World(settings, [ScriptedGenerator("generator-0")], HangingLearner(call, number)).run(NUM_STEPS)

    with pytest.raises(TimeoutError):
        simulate(main())
