"""When the engine hands requests to vLLM and when it loads weights, over a stand-in for vLLM."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from medvista_ray.rollout.engine import Prompt, Sampling
from medvista_ray.rollout.vllm_engine import VllmEngine
from medvista_ray.rollout.vllm_settings import EngineSettings

TURNS_OF_THE_LOOP = 20
"""More than any step here takes that waits for nothing."""


class StandIn:
    """What is called of vLLM, as a log; hands requests over, and loads weights, when it is let."""

    def __init__(self) -> None:
        self.log: list[str] = []
        self.may_add = asyncio.Event()
        self.may_load = asyncio.Event()
        self.engine_core = SimpleNamespace(pause_scheduler_async=self.pause)

    async def add_request(self, request_id: str, prompt: dict[str, Any], params: Any) -> None:
        self.log.append(f"begin {prompt['cache_salt']}")
        await self.may_add.wait()
        self.log.append(f"end {prompt['cache_salt']}")

    async def pause(self, **options: Any) -> None:
        self.log.append("pause")

    async def resume_generation(self) -> None:
        self.log.append("resume")

    async def update_weight_version(self, version: str) -> None:
        await self.may_load.wait()
        self.log.append(f"load {version}")


def serving(monkeypatch: pytest.MonkeyPatch) -> tuple[VllmEngine, StandIn]:
    """An engine that serves version 3."""
    monkeypatch.setattr(VllmEngine, "_sampling_params", lambda self, sampling: None)  # would import vLLM
    engine: Any = VllmEngine(EngineSettings(model=Path("unread"), version=3, train_vision=False))
    engine._engine = stand_in = StandIn()
    engine._open.set()
    return engine, stand_in


def ask(engine: VllmEngine) -> asyncio.Task[Any]:
    return asyncio.create_task(engine._admit(Prompt([1], []), Sampling(1.0, 8)))


def update(engine: VllmEngine, version: int) -> asyncio.Task[None]:
    async def load() -> None:
        async with engine._paused():
            await engine._commit(version)

    return asyncio.create_task(load())


async def settle() -> None:
    """Let everything go as far as it can."""
    for _ in range(TURNS_OF_THE_LOOP):
        await asyncio.sleep(0)


def test_an_update_waits_until_a_request_that_has_its_salt_is_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        engine, vllm = serving(monkeypatch)
        asked = ask(engine)
        await settle()
        vllm.may_load.set()
        loading = update(engine, 4)
        await settle()
        assert vllm.log == ["begin v3"]
        vllm.may_add.set()
        await asyncio.wait_for(asyncio.gather(asked, loading), 5)
        assert vllm.log == ["begin v3", "end v3", "pause", "load 4", "resume"]

    asyncio.run(run())


def test_a_request_that_comes_during_an_update_waits_and_gets_the_new_versions_salt(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        engine, vllm = serving(monkeypatch)
        vllm.may_add.set()
        loading = update(engine, 4)
        await settle()
        asked = ask(engine)
        await settle()
        assert vllm.log == ["pause"]
        vllm.may_load.set()
        await asyncio.wait_for(asyncio.gather(asked, loading), 5)
        assert vllm.log == ["pause", "load 4", "resume", "begin v4", "end v4"]

    asyncio.run(run())


def test_requests_that_come_while_an_update_waits_do_not_hold_it_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run() -> None:
        engine, vllm = serving(monkeypatch)
        vllm.may_load.set()
        tasks: list[asyncio.Task[Any]] = [ask(engine)]
        await settle()
        tasks += [update(engine, 4)]
        await settle()
        tasks += [ask(engine)]
        await settle()
        assert vllm.log == ["begin v3"]
        vllm.may_add.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 5)
        assert vllm.log == ["begin v3", "end v3", "pause", "load 4", "resume", "begin v4", "end v4"]

    asyncio.run(run())
