"""vLLM as the rollout's engine: one model, continuous batching, weights replaced while requests are in flight.

Invariants:
- a request is admitted only when a version is completely loaded: `generate` waits while one is being loaded, and an
  update that fails leaves the version before it in place;
- `Completion.versions` says of each token which version sampled it;
- a cached prefix is never reused across versions (`cache_salt`), nor is an encoded picture if the vision tower is
  trained.

A request in flight keeps its own KV cache across an update: cheap, and what the recorded log-probs truly describe, but
a learner that recomputes those tokens under one version sees them differ. `recompute_on_update` submits it anew behind
the tokens it has sampled so far, so that every log-prob is that of the token's version alone, at the price of a
prefill. (vLLM's own way, preempting with a cleared cache, ends in "Encoder cache miss": its worker drops pictures that
a prefix hit covered.)

Called by the generator actor and by tests; importing this module does not import vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import os
import time
from collections.abc import AsyncGenerator, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from medvista_ray.errors import InvariantError, MedVistaError, WeightUpdateError
from medvista_ray.rollout.engine import Completion, Prompt, Sampling
from medvista_ray.rollout.vllm_receive import Send, Step, control, receive
from medvista_ray.rollout.vllm_settings import EngineSettings, cpu_environment, engine_args, split_stops
from medvista_ray.types import EngineLoad
from medvista_ray.weights.manifest import Held, Manifest
from medvista_ray.weights.vllm_plugin import BACKEND, register

if TYPE_CHECKING:
    from vllm import SamplingParams
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

DEATH_POLL_S = 0.5
"""How often a load looks whether the engine's process still lives."""
INTERRUPTED = "abort"
"""vLLM's finish reason of a request that an update cut short."""


@dataclass(frozen=True)
class UpdateTimes:
    """What a weight update cost."""

    pause_s: float
    """From the pause's request to the resume's end: no token was sampled meanwhile."""
    update_s: float
    """Of that, loading the weights."""


@dataclass(frozen=True)
class EngineStats:
    """Counters since the start."""

    version: int
    num_running: int
    num_requests: int
    num_tokens: int
    """Sampled tokens."""
    num_cached_tokens: int
    """Prompt tokens that the prefix cache held."""
    num_prompt_tokens: int
    num_updates: int
    busy_s: float
    """Time with a request in flight."""
    up_s: float
    """Time since the engine was ready."""
    pids: tuple[int, ...] = ()
    """Of the engine's own processes, on this node."""


class VllmEngine:
    """An `Engine` over vLLM's AsyncLLM, for one event loop: `await start()`, then any number of `generate` at once."""

    def __init__(self, settings: EngineSettings) -> None:
        self.settings = settings
        self._engine: AsyncLLM | None = None
        self._good: Held | None = None
        self._version = settings.version
        self._started = self._closed = False
        self._open = asyncio.Event()
        self._update = asyncio.Lock()
        self._num_admitting = 0
        self._admitted = asyncio.Condition()
        self._ids = itertools.count()
        self._counts = dict.fromkeys(("requests", "finished", "tokens", "cached", "prompt", "updates"), 0)
        self._clock = _BusyClock()

    @property
    def version(self) -> int:
        """The version that serves."""
        return self._version

    async def start(self) -> None:
        """Start the engine's processes and load the model (20-40 s on a CPU). Serves `settings.version` afterwards."""
        os.environ.update(cpu_environment(self.settings.cores, self.settings.weight_backend))
        from vllm.v1.engine.async_llm import AsyncLLM

        register()
        self._engine = AsyncLLM.from_engine_args(engine_args(self.settings))
        self._tokenizer = self._engine.get_tokenizer()
        self._stop_token_ids, self._stop_strings = split_stops(self._tokenizer.get_vocab(), self.settings.stops)
        if self.settings.weight_backend == BACKEND:  # a learner that sends does this itself
            await control(self._engine, "init", {})
        await self._engine.update_weight_version(str(self._version))
        self._clock.start()
        self._started = True
        self._open.set()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Sample one turn. Waits while a version is being loaded; cancelling it aborts the request."""
        parts = [await self._sample(prompt, sampling)]
        while parts[-1].outputs[0].finish_reason == INTERRUPTED:
            sampled = [token for part in parts for token in part.outputs[0].token_ids]
            rest = dataclasses.replace(sampling, max_tokens=sampling.max_tokens - len(sampled))
            parts.append(await self._sample(Prompt([*prompt.token_ids, *sampled], prompt.images), rest))
        return self._completion(parts)

    async def load_version(self, manifest: Manifest, send: Send | None = None) -> UpdateTimes:
        """Serve `manifest`'s weights from here on; running requests go on with them. Without a segment of this node,
        `send` has the learner send them.

        Raises WeightUpdateError if they cannot be loaded; the version before then keeps serving. Raises MedVistaError if the
        engine's process is dead or dies meanwhile.
        """
        from vllm.v1.engine.exceptions import EngineDeadError

        died = f"the engine's process died before it had loaded version {manifest.version}"
        loading = asyncio.ensure_future(self._load_version(manifest, send))
        try:
            # vLLM's control calls wait for ever for the answer of a process that dies meanwhile, and refuse if it is known.
            while not (await asyncio.wait([loading], timeout=DEATH_POLL_S))[0]:
                if not self.healthy:
                    raise MedVistaError(died)
            return loading.result()
        except EngineDeadError as error:
            raise MedVistaError(died) from error
        finally:
            loading.cancel()

    async def _load_version(self, manifest: Manifest, send: Send | None) -> UpdateTimes:
        async with self._update:
            held = await asyncio.to_thread(Held, manifest) if manifest.path or send is None else None
            begin = time.perf_counter()
            try:
                async with self._paused():
                    paused = time.perf_counter()
                    if held is not None:
                        await self._apply_or_restore(held.path, manifest.version)
                    elif send is not None:
                        await self._receive(manifest, send)
                    update_s = time.perf_counter() - paused
                # Held while it serves, so that it can be restored when a later version fails.
                held, self._good = self._good, held
            finally:
                if held is not None:
                    held.close()
            self._counts["updates"] += 1
            return UpdateTimes(pause_s=time.perf_counter() - begin, update_s=update_s)

    async def control(self, step: Step, info: dict[str, Any]) -> None:
        """What `send` has the learner do here while `load_version` waits for it."""
        await control(self._running(), step, info)

    def stats(self) -> EngineStats:
        """Counters since the start."""
        counts = self._counts
        return EngineStats(
            version=self._version,
            num_running=self._clock.num_running,
            num_requests=counts["requests"],
            num_tokens=counts["tokens"],
            num_cached_tokens=counts["cached"],
            num_prompt_tokens=counts["prompt"],
            num_updates=counts["updates"],
            busy_s=self._clock.busy_s(),
            up_s=self._clock.up_s(),
            pids=_processes(self._engine),
        )

    def load(self) -> EngineLoad | None:
        """How full the engine is, estimated from the requests in flight: each takes what requests took so far, prefixes
        that they share counted for each. None before the first one has ended."""
        cache, counts = self._running().vllm_config.cache_config, self._counts
        capacity = (cache.num_gpu_blocks or 0) * cache.block_size
        if not capacity or not counts["finished"]:
            return None
        num_queued = max(0, self._clock.num_running - self.settings.max_num_seqs)
        each = (counts["prompt"] + counts["tokens"]) / counts["finished"]
        return EngineLoad(min(1.0, (self._clock.num_running - num_queued) * each / capacity), num_queued)

    @property
    def started(self) -> bool:
        """Whether `start` has finished."""
        return self._started

    @property
    def healthy(self) -> bool:
        """Whether the engine serves, or will once it is started. May be read from any thread."""
        engine = self._engine
        return not self._closed and (engine is None or not engine.errored)

    def shutdown(self) -> None:
        """Stop the engine's processes. Idempotent."""
        self._closed = True
        if self._engine is not None:
            self._engine.shutdown()
            self._engine = None
        if self._good is not None:
            self._good.close()

    def _running(self) -> AsyncLLM:
        if self._engine is None:
            raise MedVistaError("the engine is not running: it was not started, was shut down, or lost its weights")
        return self._engine

    async def _sample(self, prompt: Prompt, sampling: Sampling) -> RequestOutput:
        """Run one request to its end, or to the update that interrupts it."""
        collector = await self._admit(prompt, sampling)
        with self._clock.request():
            output: Any = None
            try:
                while output is None or not output.finished:
                    output = collector.get_nowait() or await collector.get()
            except asyncio.CancelledError:
                await self._running().abort(collector.request_id, internal=True)
                raise
            finally:
                collector.close()
        return output

    async def _admit(self, prompt: Prompt, sampling: Sampling) -> Any:
        """Hand the request to vLLM under the version that serves: no update starts between salt and hand-over."""
        await self._open.wait()
        self._num_admitting += 1
        try:
            self._counts["requests"] += 1
            return await self._running().add_request(
                f"r{next(self._ids)}", self._engine_prompt(prompt), self._sampling_params(sampling)
            )
        finally:
            self._num_admitting -= 1
            async with self._admitted:
                self._admitted.notify_all()

    def _engine_prompt(self, prompt: Prompt) -> Any:
        engine_prompt: dict[str, Any] = {"prompt_token_ids": prompt.token_ids, "cache_salt": f"v{self._version}"}
        if prompt.images:
            engine_prompt["multi_modal_data"] = {"image": [Image.fromarray(image) for image in prompt.images]}
        return engine_prompt

    def _sampling_params(self, sampling: Sampling) -> SamplingParams:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sampling.max_tokens,
            stop_token_ids=self._stop_token_ids,
            stop=self._stop_strings,
            include_stop_str_in_output=True,
            detokenize=bool(self._stop_strings),
            skip_special_tokens=False,
            logprobs=0,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )

    def _completion(self, parts: Sequence[RequestOutput]) -> Completion:
        """One completion of the requests that make a turn."""
        outputs = [part.outputs[0] for part in parts]
        token_ids = [token for output in outputs for token in output.token_ids]
        self._counts["finished"] += len(parts)
        self._counts["tokens"] += len(token_ids)
        self._counts["cached"] += sum(part.num_cached_tokens or 0 for part in parts)
        self._counts["prompt"] += sum(len(part.prompt_token_ids or ()) for part in parts)
        return Completion(
            prompt_ids=list(parts[0].prompt_token_ids or ()),
            token_ids=token_ids,
            logprobs=np.concatenate([_logprobs(output) for output in outputs]),
            versions=np.concatenate([_versions(output) for output in outputs]),
            text=self._tokenizer.decode(token_ids),
            stopped=outputs[-1].finish_reason == "stop",
        )

    @contextlib.asynccontextmanager
    async def _paused(self) -> AsyncGenerator[None]:
        """No request is admitted and no token sampled inside. An engine without whole weights is not resumed."""
        self._open.clear()
        try:
            async with self._admitted:
                await self._admitted.wait_for(lambda: self._num_admitting == 0)
            mode = "abort" if self.settings.recompute_on_update else "keep"
            # What `pause_generation` does, without the 20 ms that it then sleeps for the callers' order of events.
            await self._running().engine_core.pause_scheduler_async(mode=mode, clear_cache=False)
            try:
                yield
            finally:
                if self._engine is not None:
                    await self._engine.resume_generation()
        finally:
            self._open.set()

    async def _apply_or_restore(self, path: str, version: int) -> None:
        try:
            await self._apply(path, version)
        # Whatever the loader raises in the worker arrives as a bare Exception; the engine must not stay half-loaded.
        except Exception as error:
            await self._restore(error)
            raise WeightUpdateError(f"version {version} was not loaded: {error}") from error

    async def _restore(self, cause: Exception) -> None:
        """Load the version before again, whole; if even that fails the engine is shut down, for it must not serve."""
        logger.warning("weight update failed, version %d is loaded again: %s", self._version, cause)
        try:
            # The folder first: the refused file may have reached weights that published files do not hold.
            await self._apply(str(self.settings.model), self._version)
            if self._good is not None:
                await self._apply(self._good.path, self._version)
        # Fault boundary as above, but now no whole weights are left.
        except Exception as error:
            self.shutdown()
            raise WeightUpdateError(f"version {self._version} could not be restored: {error}") from cause

    async def _receive(self, manifest: Manifest, send: Send) -> None:
        await receive(self._running(), manifest, send)
        try:
            await self._running().finish_weight_update()
            await self._commit(manifest.version)
        # Whatever the loader raises: what came is in the model in part, and the version before is nowhere any more.
        except Exception as error:
            self.shutdown()
            raise WeightUpdateError(f"version {manifest.version} was not loaded, nothing is left: {error}") from error

    async def _apply(self, path: str, version: int) -> None:
        await self._running().collective_rpc("load_weight_file", args=(path,))
        await self._commit(version)

    async def _commit(self, version: int) -> None:
        """The model holds `version`: say so, and forget what older weights encoded. Both calls travel together."""
        engine = self._running()
        calls = [engine.update_weight_version(str(version))]
        if self.settings.train_vision:
            calls.append(engine.reset_encoder_cache())
        await asyncio.gather(*calls)
        self._version = version


class _BusyClock:
    """Sums the time in which at least one request is in flight."""

    def __init__(self) -> None:
        self.num_running = 0
        self._busy_s = 0.0
        self._since = 0.0
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.perf_counter()

    @contextlib.contextmanager
    def request(self) -> Generator[None]:
        if self.num_running == 0:
            self._since = time.perf_counter()
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            if self.num_running == 0:
                self._busy_s += time.perf_counter() - self._since

    def busy_s(self) -> float:
        running = time.perf_counter() - self._since if self.num_running else 0.0
        return self._busy_s + running

    def up_s(self) -> float:
        return time.perf_counter() - self._started if self._started is not None else 0.0


def _processes(engine: AsyncLLM | None) -> tuple[int, ...]:
    resources: Any = getattr(engine.engine_core, "resources", None) if engine else None
    return tuple(process.pid for process in resources.engine_manager.processes) if resources else ()


def _logprobs(output: CompletionOutput) -> NDArray[np.float32]:
    """[sampled tokens]. Raises InvariantError if one has no log-prob."""
    flat: Any = output.logprobs  # vLLM's FlatLogprobs: one entry per token, since no alternatives are asked for
    values = np.asarray(flat.logprobs if flat else (), np.float32)
    if len(values) != len(output.token_ids):
        raise InvariantError(f"vLLM returned {len(values)} log-probs for {len(output.token_ids)} tokens")
    return values


def _versions(output: CompletionOutput) -> NDArray[np.int32]:
    """[sampled tokens] from vLLM's spans. Raises InvariantError if a token has no version."""
    versions = np.full(len(output.token_ids), -1, np.int32)
    for span in output.weight_versions or ():
        versions[span.start : span.end] = int(span.version)
    if (versions < 0).any():
        raise InvariantError(f"vLLM named no weight version for {int((versions < 0).sum())} of {len(versions)} tokens")
    return versions
