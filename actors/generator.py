"""The generator actor: a vLLM engine that plays episodes without ever waiting for the learner.

A thin Ray shell. Invariants: nothing is generated before the current policy version is loaded (a restarted actor waits for
`load_version`: what it was made with may be outdated); a group is returned whole, by value; `health` and `stats` answer
from a thread of their own. Made by the supervisor, called by the coordinator.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray

from actors.weights import ReceivingActor, load
from medvista_ray.config import TrainConfig
from medvista_ray.envs.episode import MedEnv
from medvista_ray.errors import MedVistaError
from medvista_ray.models.policy import load_inputs
from medvista_ray.rewards.composite import score
from medvista_ray.rollout.chat import ChatFormat
from medvista_ray.rollout.loop import run_episode, run_group
from medvista_ray.rollout.vllm_engine import VllmEngine
from medvista_ray.rollout.vllm_settings import engine_settings
from medvista_ray.tasks.source import load_source
from medvista_ray.tools.base import ToolClient
from medvista_ray.types import Episode, Group, MedImage, Task
from medvista_ray.weights.manifest import Manifest

SERVING_TIMEOUT_S = 300.0
"""How long a call waits for the engine to serve."""


# Ray's annotations know no concurrency groups.
@ray.remote(concurrency_groups={"control": 4}, max_concurrency=1000)  # pyright: ignore[reportCallIssue, reportUntypedClassDecorator]
class GeneratorActor(ReceivingActor):
    """One engine. Calls in flight are bounded by the caller (admission), so control calls never queue behind them."""

    def __init__(
        self,
        index: int,
        config: TrainConfig,
        model_folder: str,
        make_client: Callable[[], ToolClient],
        initial_manifest: str | None = None,
    ) -> None:
        """`index` from 0. `make_client` is called here, once. `initial_manifest` is loaded before serving; without one
        the weights of `model_folder` serve as version 0."""
        self._index = index
        self._config = config
        self._manifest = Manifest.from_json(initial_manifest) if initial_manifest else None
        inputs = load_inputs(Path(model_folder))
        self._chat = ChatFormat.from_policy(inputs.tokenizer, inputs.model_type)
        self._engine = VllmEngine(engine_settings(config, inputs, index))
        self._source = load_source(config.bench)
        self._client = make_client()
        self._restarted = bool(ray.get_runtime_context().was_current_actor_reconstructed)
        self._started = asyncio.Lock()
        self._serving = asyncio.Event()

    def __repr__(self) -> str:
        return f"Generator({self._index})"

    async def ready(self, as_made: bool = False) -> int:
        """Start the engine (20-40 s on a CPU), load the initial version, and return the version that serves. A restarted
        actor serves nothing yet, unless `as_made` says that what it was made with is still what counts."""
        await self._start()
        if not self._serving.is_set() and (as_made or not self._restarted):
            if self._manifest is not None:
                await load(self._engine, self._manifest, self._config.weights.transport)
            self._serving.set()
        return self._engine.version

    async def run_group(self, group_id: int, task: Task, group_size: int, version_admitted: int = 0) -> Group:
        """`group_size` scored episodes of `task`, with tools, at the training temperature."""
        await self._wait_serving()
        loop = asyncio.get_running_loop()
        begin = loop.time()
        images = await asyncio.to_thread(self._source.open, task)
        episodes = await run_group(
            task, lambda: self._environment(self._client, lambda _: images), self._engine, self._chat, self._config.rollout,
            self._client.specs, self._config.policy.image_side, group_size,
            max_model_len=self._config.policy.max_model_len,
        )  # fmt: skip
        scored = [score(episode, self._config.reward) for episode in episodes]
        return Group(
            id=group_id, episodes=scored, version_admitted=version_admitted, seconds=loop.time() - begin,
            engine_load=self._engine.load(),
        )  # fmt: skip

    async def run_episodes(self, tasks: Sequence[Task], with_tools: bool, temperature: float) -> list[Episode]:
        """One scored episode of each task, in order, `evaluation.concurrency` at a time. 0 is greedy."""
        await self._wait_serving()
        slots = asyncio.Semaphore(self._config.evaluation.concurrency)
        client = self._client if with_tools else None

        async def one(task: Task) -> Episode:
            async with slots:
                episode = await run_episode(
                    task, self._environment(client, self._source.open), self._engine, self._chat, self._config.rollout,
                    client.specs if client else (), self._config.policy.image_side, temperature,
                    max_model_len=self._config.policy.max_model_len,
                )  # fmt: skip
            return score(episode, self._config.reward)

        return list(await asyncio.gather(*(one(task) for task in tasks)))

    async def load_version(self, manifest_json: str) -> dict[str, float]:
        """Serve that version: {"pause_s", "update_s"}. Raises WeightUpdateError; the version before then goes on."""
        await self._start()
        times = await load(self._engine, Manifest.from_json(manifest_json), self._config.weights.transport)
        self._serving.set()
        return dataclasses.asdict(times)

    @ray.method(concurrency_group="control")
    async def stats(self) -> dict[str, Any]:
        """Counters of the engine (`rollout.vllm_engine.EngineStats`) and the name of this generator."""
        return {"name": repr(self), **dataclasses.asdict(self._engine.stats())}

    @ray.method(concurrency_group="control")
    async def health(self) -> bool:
        """Whether the engine can serve, now or once it has started. Answers at once, also while groups run."""
        return self._engine.healthy

    @ray.method(concurrency_group="control")
    async def pid(self) -> int:
        """Of this process; the engine's are its children."""
        return os.getpid()

    async def shutdown(self) -> None:
        """Stop the engine's processes."""
        self._engine.shutdown()

    async def _start(self) -> None:
        async with self._started:
            if not self._engine.started:
                await self._engine.start()

    async def _wait_serving(self) -> None:
        try:
            await asyncio.wait_for(self._serving.wait(), SERVING_TIMEOUT_S)
        except TimeoutError:
            raise MedVistaError(f"{self!r} got no policy version within {SERVING_TIMEOUT_S:.0f} s") from None

    def _environment(self, client: ToolClient | None, open_images: Callable[[Task], Sequence[MedImage]]) -> MedEnv:
        return MedEnv(client, open_images, self._config.rollout.max_calls)
