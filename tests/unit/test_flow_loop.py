"""The real loop with scripted generators and a scripted learner, in simulated time."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from medvista_ray.errors import ConfigError, GeneratorDiedError, InvariantError, RunFolderError, StarvationError
from medvista_ray.flow.loop import LoopSettings, TrainingLoop
from medvista_ray.flow.slots import Limits
from medvista_ray.types import Group, Task
from tests.scripted_flow import SETTINGS, ScriptedGenerator, ScriptedLearner, Stuck, World, make_tasks, simulate


def run_world(settings: LoopSettings, num_steps: int, num_generators: int = 2, seed: int = 0, **script: Any) -> World:
    """A finished run; the bookkeeping that must hold after every run has been asserted."""

    async def main() -> World:
        train_s = script.pop("train_s", 2.0)
        generators = [ScriptedGenerator(f"generator-{i}", seed + i, **script) for i in range(num_generators)]
        world = World(settings, generators, ScriptedLearner(train_s))
        await world.run(num_steps)
        return world

    world: World = simulate(main())
    counts = world.loop.ledger.counts
    assert counts.num_trained == num_steps * settings.batch_groups == sum(world.learner.trained.values())
    assert counts.num_submitted == counts.num_trained + counts.num_filtered + counts.num_failed + counts.num_in_flight
    assert set(world.learner.trained.values()) == {1}, "a group was trained twice"
    assert max(world.learner.staleness) <= settings.eta
    return world


def scenarios() -> Iterator[tuple[int, dict[str, Any]]]:
    for seed in range(60):
        rng = random.Random(seed)
        batch = rng.choice([1, 2, 4, 8])
        yield (
            seed,
            {
                "eta": rng.choice([0, 0, 1, 1, 2, 4]),
                "by_batch": False,
                "batch_groups": batch,
                "max_running": rng.choice([1, 3, batch, 2 * batch, 50]),
                "num_generators": rng.choice([1, 2, 3, 5]),
                "train_s": rng.choice([0.1, 2.0, 20.0]),
                "slow_share": rng.choice([0.0, 0.1, 0.5]),
                "load_s": rng.choice([(0.01, 0.02), (0.5, 9.0)]),
                "filtered_share": rng.choice([0.0, 0.3, 0.8]),
                "failed_share": rng.choice([0.0, 0.1]),
                "death_share": rng.choice([0.0, 0.0, 0.05]),
                "bad_load_share": rng.choice([0.0, 0.0, 0.1]),
            },
        )


def batch_scenarios() -> Iterator[tuple[int, dict[str, Any]]]:
    for seed, script in list(scenarios())[:20]:
        yield seed, script | {"eta": seed % 2, "by_batch": True}


@pytest.mark.parametrize("scenario", [*scenarios(), *batch_scenarios()], ids=lambda s: f"seed{s[0]}")
def test_no_token_is_ever_staler_than_eta_and_no_run_gets_stuck(scenario: tuple[int, dict[str, Any]]) -> None:
    seed, script = scenario
    names = ("eta", "by_batch", "batch_groups", "max_running")
    settings = replace(SETTINGS, max_retries=5, **{name: script.pop(name) for name in names})
    world = run_world(settings, num_steps=12, seed=seed, **script)
    assert world.loop.ledger.counts.num_in_flight == 0, "work was admitted that could never be trained"


def test_the_simulation_reports_a_deadlock() -> None:
    async def main() -> None:
        await asyncio.Event().wait()

    with pytest.raises(Stuck):
        simulate(main())


def test_asynchronous_runs_do_reach_the_bound() -> None:
    world = run_world(replace(SETTINGS, eta=2, max_running=50), num_steps=20, slow_share=0.3)
    assert max(world.learner.staleness) == 2


def test_eta_zero_never_samples_while_the_learner_trains() -> None:
    async def main() -> World:
        world = World(replace(SETTINGS, eta=0), [ScriptedGenerator("generator-0")], ScriptedLearner())
        during: list[int] = []
        plain = world.learner.train

        async def train(groups: list[Group]) -> dict[str, float]:
            during.append(world.loop.ledger.counts.num_running)
            return await plain(groups)

        world.learner.train = train  # type: ignore[method-assign]
        await world.run(6)
        assert during == [0] * 6
        return world

    assert set(simulate(main()).learner.staleness) == {0}


def test_one_step_off_generates_a_whole_batch_with_one_version_while_the_one_before_is_trained() -> None:
    during: list[int] = []
    versions: dict[int, set[int]] = {}

    async def main() -> World:
        generators = [ScriptedGenerator(f"generator-{i}", i) for i in range(2)]
        world = World(replace(SETTINGS, by_batch=True), generators, ScriptedLearner(train_s=20.0))
        plain = world.learner.train

        async def train(groups: list[Group]) -> dict[str, float]:
            await asyncio.sleep(0.5)
            during.append(world.loop.ledger.counts.num_running)
            for group in groups:
                for episode in group.episodes:
                    versions.setdefault(len(during), set()).update(episode.versions[episode.loss_mask].tolist())
            return await plain(groups)

        world.learner.train = train  # type: ignore[method-assign]
        await world.run(6)
        return world

    world: World = simulate(main())
    assert during == [4, 4, 4, 4, 4, 0]
    assert versions == {1: {1}, 2: {1}, 3: {2}, 4: {3}, 5: {4}, 6: {5}}
    assert set(world.learner.staleness) == {0, 1}


def test_the_three_modes_are_ordered_by_what_they_make_of_the_same_seconds() -> None:
    def end_s(eta: int, by_batch: bool) -> float:
        settings = replace(SETTINGS, eta=eta, by_batch=by_batch, max_running=4)
        return run_world(settings, 30, num_generators=1, train_s=4.0, slow_share=0.2).learner.busy[-1][1]

    sync, one_step_off, asynchronous = end_s(0, True), end_s(1, True), end_s(1, False)
    assert asynchronous < 0.9 * one_step_off < 0.9 * sync


def test_generation_and_training_overlap() -> None:
    script = {"latency_s": (2.0, 2.0), "slow_share": 0.0, "load_s": (0.01, 0.01)}
    together = run_world(replace(SETTINGS, eta=1, max_running=4), 20, num_generators=1, **script)
    in_turn = run_world(replace(SETTINGS, eta=0, max_running=4), 20, num_generators=1, **script)
    ends = [world.learner.busy[-1][1] for world in (together, in_turn)]
    assert ends[0] < 0.6 * ends[1]
    assert together.loop.status()["idle_frac"]["generator"] < 0.1
    assert in_turn.loop.status()["idle_frac"]["generator"] > 0.4


def test_a_slow_load_does_not_stop_the_other_generator() -> None:
    async def main() -> list[ScriptedGenerator]:
        slow = ScriptedGenerator("generator-0", load_s=(50.0, 50.0))
        fast = ScriptedGenerator("generator-1", load_s=(0.01, 0.01))
        await World(SETTINGS, [slow, fast], ScriptedLearner()).run(20)
        return [slow, fast]

    slow, fast = simulate(main())
    assert len(fast.started) > 2 * len(slow.started)
    assert slow.loaded == sorted(set(slow.loaded))
    assert len(slow.loaded) < len(fast.loaded), "the slow one skips versions"


def test_a_dead_generators_groups_are_sampled_again_and_nothing_is_lost() -> None:
    async def main() -> World:
        generators = [ScriptedGenerator(f"generator-{i}", seed=i) for i in range(2)]
        world = World(SETTINGS, generators, ScriptedLearner())
        asyncio.get_running_loop().call_later(10.3, generators[0].die)
        await world.run(10)
        return world

    world = simulate(main())
    counts = world.loop.ledger.counts
    started = [*world.generators[0].started, *world.generators[1].started]
    assert world.generators[0].num_lives == 2
    assert len(started) > len(set(started)), "its groups were started again"
    assert counts.num_failed == 0
    assert counts.num_trained == 40
    assert world.loop.status()["num_generator_faults"] == 1


def test_generators_join_and_leave_while_the_run_goes_on() -> None:
    async def main() -> tuple[World, list[int], ScriptedGenerator]:
        generators = [ScriptedGenerator(f"generator-{i}", seed=i) for i in range(2)]
        late = ScriptedGenerator("generator-9", seed=9)
        world = World(SETTINGS, generators, ScriptedLearner())
        run = asyncio.ensure_future(world.run(30))
        await asyncio.sleep(20.0)
        with pytest.raises(ConfigError, match="'generator-1' is in the run already"):
            world.loop.fleet.add(generators[1])
        world.loop.fleet.add(late)
        await asyncio.sleep(20.0)
        await world.loop.fleet.remove("generator-0")
        at_leave = list(generators[0].started)
        with pytest.raises(ConfigError, match="'generator-0' cannot leave: there is none"):
            await world.loop.fleet.remove("generator-0")
        await run
        assert generators[0].started == at_leave, "it got work after it had left"
        return world, at_leave, late

    world, at_leave, late = simulate(main())
    started = [group for generator in (*world.generators, late) for group in generator.started]
    assert at_leave
    assert late.started
    assert late.loaded[0] > 1, "it began with the newest version"
    assert len(started) == len(set(started)), "nothing was sampled again"
    assert set(world.learner.trained.values()) == {1}
    assert sum(world.learner.trained.values()) == 30 * 4


def test_the_last_generator_that_works_cannot_leave() -> None:
    async def main() -> None:
        world = World(SETTINGS, [ScriptedGenerator("generator-0")], ScriptedLearner())
        run = asyncio.ensure_future(world.run(3))
        await asyncio.sleep(5.0)
        with pytest.raises(ConfigError, match="no other works"):
            await world.loop.fleet.remove("generator-0")
        await run

    simulate(main())


def test_a_hung_generator_is_restarted() -> None:
    class Hanging(ScriptedGenerator):
        async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
            if self.num_lives == 1 and len(self.started) == 5:
                await asyncio.Event().wait()
            return await super().run_group(group_id, task, group_size)

    async def main() -> World:
        settings = replace(SETTINGS, limits=Limits(group_s=200.0))
        world = World(settings, [Hanging("generator-0")], ScriptedLearner())
        await world.run(5)
        return world

    assert simulate(main()).generators[0].num_lives == 2


def test_a_run_without_any_generator_left_ends_with_the_cause() -> None:
    class Broken(ScriptedGenerator):
        async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
            raise RuntimeError("the engine's socket is gone")

    async def main() -> None:
        await World(replace(SETTINGS, max_retries=99), [Broken("generator-0")], ScriptedLearner()).run(5)

    with pytest.raises(GeneratorDiedError, match="socket is gone"):
        simulate(main())


def test_a_run_in_which_no_group_has_a_signal_ends_with_the_cause() -> None:
    with pytest.raises(StarvationError, match="81 had equal rewards"):
        run_world(SETTINGS, 5, filtered_share=1.0)


def test_groups_of_equal_rewards_are_replaced_or_trained_as_configured() -> None:
    replaced = run_world(SETTINGS, 5, filtered_share=0.5)
    kept = run_world(replace(SETTINGS, keep_equal=True), 5, filtered_share=0.5)
    assert replaced.loop.ledger.counts.num_filtered > 0
    assert kept.loop.ledger.counts.num_filtered == 0
    assert kept.loop.ledger.counts.num_trained == replaced.loop.ledger.counts.num_trained == 5 * SETTINGS.batch_groups


def test_trained_groups_are_freed() -> None:
    class Watching(ScriptedLearner):
        async def train(self, groups: list[Group]) -> dict[str, float]:
            given.extend(weakref.ref(group) for group in groups)
            return await super().train(groups)

    async def main() -> None:
        world = World(SETTINGS, [ScriptedGenerator("generator-0")], Watching())
        await world.run(20)
        gc.collect()
        assert sum(ref() is not None for ref in given) <= SETTINGS.batch_groups
        assert world.loop.step == 20, "the loop itself still exists"

    given: list[weakref.ref[Group]] = []
    simulate(main())
    assert len(given) == 20 * SETTINGS.batch_groups


def test_a_stopped_run_resumes_with_its_groups_in_flight_and_the_next_tasks() -> None:
    async def first() -> World:
        world = World(SETTINGS, [ScriptedGenerator("generator-0")], ScriptedLearner())
        asyncio.get_running_loop().call_later(40.0, world.loop.stop)
        await world.run(100)
        return world

    before = simulate(first())
    path, state = list(before.learner.saved.items())[-1]
    in_flight = [item["id"] for item in state["groups"]["in_flight"]]
    assert path == f"run/step-{before.loop.step:06d}"
    assert before.loop.step < 100
    assert in_flight

    async def second() -> World:
        world = World(SETTINGS, [ScriptedGenerator("generator-0", seed=5)], ScriptedLearner())
        world.loop.restore(state)
        assert world.loop.step == before.loop.step
        await world.run(before.loop.step + 5)
        return world

    after = simulate(second())
    counts = after.loop.ledger.counts
    assert after.generators[0].started[: len(in_flight)] == in_flight
    assert not set(after.learner.trained) & set(before.learner.trained)
    assert sum(after.learner.trained.values()) == 20
    assert counts.num_trained == 4 * (before.loop.step + 5)
    done = counts.num_trained + counts.num_filtered + counts.num_failed
    assert counts.num_submitted == done + counts.num_in_flight
    assert max(after.learner.staleness) <= SETTINGS.eta


def test_a_resume_with_other_tasks_or_another_batch_size_is_refused() -> None:
    async def main() -> None:
        world = World(SETTINGS, [ScriptedGenerator("generator-0")], ScriptedLearner())
        await world.run(3)
        state = world.loop.state()
        other = World(SETTINGS, world.generators, world.learner, num_tasks=7)
        with pytest.raises(RunFolderError, match="other training tasks"):
            other.loop.restore(state)
        other = World(replace(SETTINGS, batch_groups=3), world.generators, world.learner)
        with pytest.raises(RunFolderError, match="groups_per_step=3"):
            other.loop.restore(state)

    simulate(main())


def test_tokens_of_a_version_that_does_not_exist_yet_stop_the_run() -> None:
    class Prophet(ScriptedGenerator):
        async def run_group(self, group_id: int, task: Task, group_size: int) -> Group:
            group = await super().run_group(group_id, task, group_size)
            for episode in group.episodes:
                episode.versions[episode.loss_mask] += 3
            return group

    async def main() -> None:
        await World(SETTINGS, [Prophet("generator-0")], ScriptedLearner()).run(3)

    with pytest.raises(InvariantError, match="versions old"):
        simulate(main())


def test_every_group_is_reported_once_with_its_outcome() -> None:
    outcomes: list[tuple[int, str]] = []

    async def main() -> TrainingLoop:
        generators = [
            ScriptedGenerator("generator-0", ready_s=0.0, latency_s=(0.001, 0.002), filtered_share=0.3, failed_share=0.2)
        ]
        loop = TrainingLoop(
            SETTINGS, make_tasks(9), generators, ScriptedLearner(0.001),
            on_groups=lambda groups, outcome, step: outcomes.extend((group.id, outcome) for group in groups),
        )  # fmt: skip
        await loop.run(5)
        return loop

    # Real time: the log is written in threads.
    counts = asyncio.run(main()).ledger.counts
    kinds = [outcome for _, outcome in outcomes]
    assert len({group_id for group_id, _ in outcomes}) == len(outcomes)
    assert kinds.count("trained") == counts.num_trained == 20
    assert kinds.count("filtered") == counts.num_filtered > 0
    assert kinds.count("failed") == counts.num_failed > 0
