"""The Ray part of the weight transports: what crosses nodes as objects, and how a learner reaches an engine to send.

Owns the relay of a node. Invariants: a version crosses to a node once, however many generators it has; a relay or a
learner that is gone surfaces as WeightUpdateError (the version before serves on, the loop tries again). Called by the
generator and the learner actors.
"""

from __future__ import annotations

import base64
import os
import pickle
from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import names
from medvista_ray.errors import WeightUpdateError
from medvista_ray.rollout.vllm_engine import UpdateTimes, VllmEngine
from medvista_ray.rollout.vllm_receive import Step
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.object_store import Relay

Handle = Any
"""A Ray actor handle: its methods exist at run time only."""

_relays: list[Handle] = []
"""This process's handle of its node's relay, at most one: Ray ends an actor whose maker holds no handle any more."""


@ray.remote(num_cpus=0)  # pyright: ignore[reportUntypedClassDecorator]
class RelayActor:
    """A node's end of the object-store transport. Its calls run one after the other."""

    def __init__(self) -> None:
        self._relay = Relay(ray.get_runtime_context().get_node_id()[:8])

    def land(self, manifest_json: str, stored: list[ray.ObjectRef[Any]]) -> str:
        """The manifest of the version's segment on this node, as JSON."""

        def fetch() -> Iterator[Any]:
            ray.wait(stored, num_returns=len(stored), timeout=0)  # begins to bring all of them to this node
            yield from map(ray.get, stored)

        return self._relay.land(Manifest.from_json(manifest_json), fetch).to_json()


async def load(engine: VllmEngine, manifest: Manifest, transport: str) -> UpdateTimes:
    """Bring the version to this actor's engine. Raises WeightUpdateError; the version before then serves on."""
    if transport == "object_store":
        manifest = await landed(manifest)
    return await engine.load_version(manifest, sent)


async def landed(manifest: Manifest) -> Manifest:
    """A manifest whose segment is on this node; fetched by the node's relay if the version is in the object store.

    Raises WeightUpdateError if it is not to be had.
    """
    try:
        learner: Handle = ray.get_actor(names.LEARNER)
        stored = await learner.stored_weights.remote(manifest.version)
        return Manifest.from_json(await _relay().land.remote(manifest.to_json(), stored))
    # The learner or the relay is gone (the next attempt makes a new relay), a bucket was lost, or memory is short.
    except (RayError, ValueError) as error:
        if isinstance(error, RayActorError):
            _relays.clear()
        cause = getattr(error, "cause", None) or error
        raise WeightUpdateError(f"version {manifest.version} did not reach this node: {cause}") from error


async def sent(manifest: Manifest) -> None:
    """Have the learner send the version to the engine of this actor (`weights.device`); raises what that raises."""
    context = ray.get_runtime_context()
    learner: Handle = ray.get_actor(names.LEARNER)
    await learner.send_weights.remote(manifest.to_json(), context.get_actor_id(), os.getpid(), context.current_actor)


class SyncClient:
    """vLLM's VLLMWeightSyncClient for one generator, as the learner's thread uses it: each call waits for the answer."""

    def __init__(self, generator: Handle) -> None:
        self._generator = generator

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        """Set the engine's end up."""
        self._call("init", init_info)

    def start_weight_update(self) -> None:
        """The engine forgets what a failed transfer left."""
        self._call("start", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """One bucket (ipc), or all of them while they are broadcast (nccl)."""
        if (handles := update_info.pop("ipc_handles", None)) is not None:
            # As vLLM's HTTP client does: handles hold types that the way to its worker does not carry.
            update_info["ipc_handles_pickled"] = base64.b64encode(pickle.dumps(handles)).decode()
        self._call("update", update_info)

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        """The engine finishes by itself, once `sent` has returned and what arrived is checked."""

    def _call(self, step: str, info: dict[str, Any]) -> None:
        ray.get(self._generator.weights_step.remote(step, info))


class ReceivingActor:
    """What an actor with an `_engine` answers while it receives."""

    _engine: VllmEngine

    async def weights_step(self, step: Step, info: dict[str, Any]) -> None:
        """One step of a learner that sends. In no concurrency group: the engine belongs to the default one's loop."""
        await self._engine.control(step, info)


def _relay() -> Handle:
    """This node's; made by the first generator that needs it, gone with that one's process."""
    if _relays:
        return _relays[0]
    node = ray.get_runtime_context().get_node_id()
    actor: Handle = RelayActor
    made = actor.options(
        name=names.relay(node), get_if_exists=True, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    ).remote()
    _relays.append(made)
    return made
