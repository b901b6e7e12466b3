"""What a learner that sends may ask of an engine (`weights.device`): vLLM's control calls, in order, by name.

Invariant: the engine's model is as before until `finish`, the one step whose failure leaves no whole weights. Called by
`rollout.vllm_engine`; importing this module does not import vLLM.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Literal

from medvista_ray.errors import WeightUpdateError
from medvista_ray.weights.manifest import Manifest

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

Step = Literal["init", "start", "update"]
Send = Callable[[Manifest], Awaitable[None]]
"""Returns when the learner has sent the whole version, having made the steps of `control` meanwhile."""


async def control(engine: AsyncLLM, step: Step, info: dict[str, Any]) -> None:
    """One call of the learner's."""
    from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

    if step == "init":
        await engine.init_weight_transfer_engine(WeightTransferInitRequest(info))
    elif step == "start":
        await engine.start_weight_update()
    else:
        await engine.update_weights(WeightTransferUpdateRequest(info))


async def receive(engine: AsyncLLM, manifest: Manifest, send: Send) -> None:
    """Let the learner send the version, and check it. Raises WeightUpdateError; the model is as before."""
    expected = {
        "num_tensors": manifest.num_tensors,
        "num_bytes": manifest.num_bytes,
        "checksums": list(manifest.checksums),
    }
    try:
        await send(manifest)
        await control(engine, "update", expected)
    # Whatever broke in the worker, in the learner or between them; all of it leaves the model alone.
    except Exception as error:
        raise WeightUpdateError(f"version {manifest.version} did not arrive: {error}") from error
