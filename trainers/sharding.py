"""A policy spread over several processes with FSDP2 (torch's `fully_shard`), and what the processes agree on.

Every process is given the same groups and takes its share of the micro-batches. Invariants: gradients and metrics are
those of one process that took them all; every process does the same number of forward and backward passes, so that
none waits for another for ever; with one process nothing here does anything. The process group (gloo or nccl) is made
by whoever starts the processes (trainers.processes). Called by the learner, both trainers and trainers.sharded_checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from medvista_ray.config import TrainConfig
from medvista_ray.errors import InvariantError
from medvista_ray.models.batching import Batch
from medvista_ray.models.logprobs import SampledLogprobs, sampled_logprobs
from medvista_ray.models.policy import Policy, trainable_parameters
from trainers.optim import make_accelerator

Item = TypeVar("Item")
Forward = Callable[[Batch, float, Sequence[int]], SampledLogprobs]
"""`sampled_logprobs` of one policy."""


def num_processes() -> int:
    """Processes that train together; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process_rank() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


class ShardedPolicy(torch.nn.Module):
    """The root that FSDP2 hooks into: our forward goes through parts of the model, never through the model's own."""

    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.policy = policy
        self.model = policy.model

    def forward(self, batch: Batch, temperature: float, banned: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Values and entropies of `sampled_logprobs`, as plain tensors: what FSDP2's hooks can see."""
        sampled = sampled_logprobs(self.policy, batch, temperature, banned)
        return sampled.values + self._untouched(batch), sampled.entropy

    def _untouched(self, batch: Batch) -> torch.Tensor | float:
        """0, with zero gradients for weights that a batch without pictures does not reach: all processes reduce the same."""
        if batch.pixels:
            return 0.0
        modules = [getattr(self.model.model, name) for name in self.policy.family.vision_modules]
        weights = [w for module in modules for w in module.parameters() if w.requires_grad]
        return sum((weight.sum() * 0.0 for weight in weights), start=torch.zeros((), device=batch.token_ids.device))


def shard(policy: Policy, device: torch.device, bf16: bool) -> FSDPModule:
    """Spread `policy` over all processes, in place; returns the root, whose call is the forward.

    A unit per layer of the text model; the rest (embeddings, head, vision) is one unit, since tied weights must be in one
    and a batch may have no picture. With `bf16` weights travel and multiply in bf16; gradients are summed in fp32.
    Raises InvariantError if it is spread already.
    """
    if any(isinstance(weight, DTensor) for weight in policy.model.parameters()):
        raise InvariantError("the policy is sharded already: hand the forward that was made then to whoever trains it")
    precision = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    mesh = init_device_mesh(device.type, (num_processes(),))
    for layer in policy.model.model.language_model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=precision)
    return fully_shard(ShardedPolicy(policy), mesh=mesh, mp_policy=precision)


def make_forward(policy: Policy, accelerator: Accelerator) -> Forward:
    """The forward of `policy`, sharded if there are several processes; then call it once, and before an optimiser is made."""
    if num_processes() == 1:
        return lambda batch, temperature, banned: sampled_logprobs(policy, batch, temperature, banned)
    root: Any = shard(policy, accelerator.device, accelerator.mixed_precision == "bf16")

    def forward(batch: Batch, temperature: float, banned: Sequence[int]) -> SampledLogprobs:
        sampled = SampledLogprobs(*root(batch, temperature, banned))
        if not torch.is_grad_enabled():  # no backward pass will free the gathered weights
            root.reshard()
        return sampled

    return forward


def prepare(policy: Policy, config: TrainConfig) -> Forward:
    """Spread `policy` over all processes for every training to come; the forward to hand to each."""
    accelerator = make_accelerator(config.learner)
    policy.model.to(accelerator.device)
    trainable_parameters(policy, config.policy.train_vision)
    return make_forward(policy, accelerator)


def deal(items: Sequence[Item]) -> list[tuple[Item, float]]:
    """This process's share of `items`, each with the factor of its loss.

    Gradients are averaged over processes, so a factor is their number; it is 0 for a repeated item that only keeps this
    process in step with those that have one more.
    """
    world, rank = num_processes(), process_rank()
    rounds = -(-len(items) // world)
    numbers = [turn * world + rank for turn in range(rounds)]
    return [(items[number], float(world)) if number < len(items) else (items[0], 0.0) for number in numbers]


def gather(parts: list[Item]) -> list[Item]:
    """The `parts` of all processes."""
    if num_processes() == 1:
        return parts
    gathered: list[list[Item]] = [[] for _ in range(num_processes())]
    dist.all_gather_object(gathered, parts)
    return [part for of_one in gathered for part in of_one]


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or put together from its shards; then every process must call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def kept_whole(named: Iterable[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
    """`named` with every tensor whole, in the first process; the others must go through it too, and get none."""
    for name, tensor in named:
        together = whole(tensor)
        if process_rank() == 0:
            yield name, together


def whole_weights(policy: Policy) -> Iterator[tuple[str, torch.Tensor]]:
    """All weights and saved buffers by name, whole, tied ones once; every process must go through them."""
    own = dict(policy.model.named_parameters())
    tied = {name for name, _ in policy.model.named_parameters(remove_duplicate=False)} - own.keys()
    for name, tensor in policy.model.state_dict().items():
        if name not in tied:
            yield name, whole(tensor.detach())
