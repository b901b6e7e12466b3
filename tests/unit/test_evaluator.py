"""The evaluator over actors that break, in simulated time: every task gets its episode, every fault is mended once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorDiedError

from actors.evaluator import MAX_ATTEMPTS, evaluate
from medvista_ray.errors import GeneratorDiedError
from medvista_ray.flow.slots import Limits
from medvista_ray.types import Episode, Task
from tests.scripted_flow import make_episode, make_tasks, simulate

LIMITS = Limits(ready_s=50.0, load_s=50.0, group_s=100.0)


async def hang() -> None:
    await asyncio.Event().wait()


async def die() -> None:
    raise ActorDiedError


async def break_down() -> None:
    raise RuntimeError("the engine's process is gone")


@dataclass
class Actor:
    """What the evaluator sees of a generator actor. Breaks in its first `num_faults` lives, serves only what it was told."""

    fault: Callable[[], Awaitable[None]] | None = None
    num_faults: int = 1
    num_lives: int = 1
    serves: bool = True
    loaded: list[str] = field(default_factory=list[str])
    killed: int = 0

    def handle(self) -> Any:
        methods = {"run_episodes": self.run_episodes, "ready": self.ready, "load_version": self.load_version}
        return SimpleNamespace(**{name: SimpleNamespace(remote=method) for name, method in methods.items()})

    def restart(self) -> None:
        self.num_lives += 1
        self.serves = False

    async def run_episodes(self, tasks: list[Task], with_tools: bool, temperature: float) -> list[Episode]:
        assert self.serves, "work before weights"
        life = self.num_lives
        await asyncio.sleep(1.0)
        if self.fault is not None and life <= self.num_faults:
            if self.fault is die and life == self.num_lives:
                self.restart()
            await self.fault()
        return [make_episode(task, [7], 1.0) for task in tasks]

    async def ready(self, as_made: bool = False) -> int:
        await asyncio.sleep(5.0)
        self.serves = self.serves or as_made
        return 0

    async def load_version(self, manifest: str) -> dict[str, float]:
        self.loaded.append(manifest)
        self.serves = True
        return {}


@pytest.fixture(autouse=True)
def kill(monkeypatch: pytest.MonkeyPatch) -> dict[int, Actor]:
    """Handles by identity, so that `ray.kill` finds the actor; nothing of Ray runs."""
    actors: dict[int, Actor] = {}

    def killed(handle: Any, *, no_restart: bool) -> None:
        assert not no_restart
        actors[id(handle)].killed += 1
        actors[id(handle)].restart()

    monkeypatch.setattr(ray, "kill", killed)
    monkeypatch.setattr(ray, "cancel", lambda _: None)
    return actors


def play(actors: list[Actor], known: dict[int, Actor], manifest: str | None = "weights", num: int = 40) -> list[Episode]:
    handles = [actor.handle() for actor in actors]
    known.update({id(handle): actor for handle, actor in zip(handles, actors, strict=True)})

    async def main() -> list[Episode]:
        return await evaluate(
            handles, make_tasks(num), with_tools=True, temperature=0.0, concurrency=8, manifest=manifest, limits=LIMITS
        )

    return simulate(main())


@pytest.mark.parametrize("fault", [hang, die, break_down])
def test_a_generator_that_breaks_or_hangs_is_brought_back_once_with_its_weights(fault: Any, kill: dict[int, Actor]) -> None:
    broken, whole = Actor(fault), Actor()
    episodes = play([broken, whole], kill)
    assert [episode.task.id for episode in episodes] == [task.id for task in make_tasks(40)]
    assert (broken.num_lives, broken.loaded) == (2, ["weights"]), "four episodes report one fault"
    assert broken.killed == (fault is not die), "Ray restarts what died by itself"
    assert (whole.num_lives, whole.loaded) == (1, [])


def test_without_published_weights_it_serves_what_it_was_made_with(kill: dict[int, Actor]) -> None:
    broken = Actor(break_down)
    assert len(play([broken], kill, manifest=None)) == 40
    assert (broken.num_lives, broken.loaded) == (2, [])


def test_a_generator_that_never_works_ends_the_evaluation(kill: dict[int, Actor]) -> None:
    broken = Actor(break_down, num_faults=100)
    with pytest.raises(GeneratorDiedError, match=rf"broke or outlived {MAX_ATTEMPTS} generators.*process is gone"):
        play([broken], kill)
