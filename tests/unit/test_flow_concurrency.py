"""The concurrency limit of a generator, alone and in the loop, against an engine whose cache fills up."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from medvista_ray.flow.concurrency import ConcurrencyLimit
from medvista_ray.types import EngineLoad, Group, Task
from tests.scripted_flow import SETTINGS, ScriptedGenerator, ScriptedLearner, World, simulate


def test_it_grows_by_one_while_the_limit_binds_and_the_engine_has_room() -> None:
    limit = ConcurrencyLimit(largest=8, limit=4)
    assert limit.observe(EngineLoad(kv_use=0.3), 4) == 5
    assert limit.observe(EngineLoad(kv_use=0.3), 4) == 5, "the limit did not bind"
    assert limit.observe(EngineLoad(kv_use=0.75), 5) == 5, "the dead band"


@pytest.mark.parametrize("load", [EngineLoad(kv_use=0.9), EngineLoad(kv_use=0.1, num_queued=3)])
def test_it_is_trimmed_by_one_below_what_is_in_flight(load: EngineLoad) -> None:
    assert ConcurrencyLimit(largest=8).observe(load, 8) == 7
    assert ConcurrencyLimit(largest=8).observe(load, 3) == 2


def test_a_full_cache_cuts_once_until_the_cut_has_taken_effect() -> None:
    limit = ConcurrencyLimit(largest=16)
    assert [limit.observe(EngineLoad(kv_use=1.0), num) for num in (16, 15, 12, 9)] == [8, 8, 8, 8]
    assert limit.observe(EngineLoad(kv_use=1.0), 8) == 4, "still full with what the cut had asked for"


def test_it_never_leaves_its_bounds() -> None:
    limit = ConcurrencyLimit(largest=3, smallest=2)
    assert [limit.observe(EngineLoad(kv_use=1.0), 2) for _ in range(5)] == [2] * 5
    assert [limit.observe(EngineLoad(kv_use=0.0), limit.limit) for _ in range(5)] == [3] * 5


class Filling(ScriptedGenerator):
    """Its cache holds `num_fit` groups; remembers the most that it had."""

    num_fit, num_now, most_late = 4, 0, 0

    async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
        self.num_now += 1
        if len(self.started) > 60:
            self.most_late = max(self.most_late, self.num_now)
        try:
            group = await super().run_group(group_id, task, group_size)
        finally:
            load = EngineLoad(kv_use=min(1.0, self.num_now / self.num_fit), num_queued=max(0, self.num_now - self.num_fit))
            self.num_now -= 1
        return replace(group, engine_load=load)


def test_the_loop_keeps_a_generator_where_its_cache_is_used_but_not_full() -> None:
    async def main() -> tuple[World, Filling]:
        generator = Filling("generator-0")
        world = World(replace(SETTINGS, eta=4, max_running=16), [generator], ScriptedLearner(train_s=0.1))
        await world.run(60)
        return world, generator

    world, generator = simulate(main())
    assert 3 <= generator.most_late <= 4, "without feedback it would be 16"
    assert sum(world.learner.trained.values()) == 60 * 4


def test_a_generator_that_says_nothing_gets_what_admission_allows() -> None:
    async def main() -> int:
        generator = ScriptedGenerator("generator-0")
        world = World(replace(SETTINGS, eta=4, max_running=16), [generator], ScriptedLearner(train_s=0.1))
        run = asyncio.ensure_future(world.run(20))
        await asyncio.sleep(3.0)
        most = world.loop.fleet.slots[0].num_groups
        await run
        return most

    assert simulate(main()) == 16
