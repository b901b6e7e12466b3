"""The Ray part of the weight transports: what crosses nodes as objects, and who sends to whom.

Owns the relay of a node. Invariants: a version crosses to a node once, however many generators it has; a relay or a
learner that is gone surfaces as WeightUpdateError (the version before serves on, the loop tries again). Called by the
generator and the learner actors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors import names
from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import Manifest
from medvista_ray.weights.object_store import Relay

Handle = Any
"""A Ray actor handle: its methods exist at run time only."""


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


async def landed(manifest: Manifest) -> Manifest:
    """A manifest whose segment is on this node; fetched by the node's relay if the version is in the object store.

    Raises WeightUpdateError if it is not to be had.
    """
    if manifest.path:
        return manifest
    try:
        learner: Handle = ray.get_actor(names.LEARNER)
        stored = await learner.stored_weights.remote(manifest.version)
        return Manifest.from_json(await _relay().land.remote(manifest.to_json(), stored))
    # The learner or the relay is gone (the next attempt makes a new relay), a bucket was lost, or memory is short.
    except (RayActorError, RayTaskError, ValueError) as error:
        if isinstance(error, WeightUpdateError):
            raise
        raise WeightUpdateError(f"version {manifest.version} did not reach this node: {error}") from error


def _relay() -> Handle:
    """This node's; made by the first generator that needs it, gone with that one's process."""
    node = ray.get_runtime_context().get_node_id()
    actor: Handle = RelayActor
    return actor.options(
        name=names.relay(node), get_if_exists=True, scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
    ).remote()
