"""One of several learner processes: `torch.distributed.run --nproc-per-node 2 sharded_worker.py POLICY OUT`.

Trains, saves, goes on; then loads the checkpoint into a new policy and goes on again. The first process writes what it
found to OUT/found.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState

from medvista_ray.config import TrainConfig
from medvista_ray.models import precision
from medvista_ray.models.policy import Policy, load_policy
from medvista_ray.types import Group
from tests.unit.tiny_policies import random_episode, random_group
from trainers.grpo import GrpoTrainer
from trainers.sharded_checkpoint import load_sharded, save_sharded
from trainers.sharding import process_rank, whole, whole_weights

BANNED = (0, 1)


def config(bf16: bool = False, **grpo: Any) -> TrainConfig:
    return TrainConfig.model_validate({"learner": {"bf16": bf16}, "grpo": {"tokens_per_microbatch": 60, **grpo}})


def batches(policy: Policy) -> list[list[Group]]:
    """Three batches; one episode of the first has no picture."""
    made = [[random_group(policy, 2 * number), random_group(policy, 2 * number + 1)] for number in range(3)]
    made[0][0].episodes[1] = random_episode(policy, [], 5, reward=1.0)
    return made


def first_gradients(trainer: GrpoTrainer, groups: list[Group]) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Clipped gradients of a step, whole, and its metrics; the step is taken."""
    clear, found = trainer.optimizer.zero_grad, dict[str, torch.Tensor]()

    def keep(set_to_none: bool) -> None:
        found.update({name: whole(w.grad).clone() for name, w in trainer.parameters.items() if w.grad is not None})
        clear(set_to_none=set_to_none)

    trainer.optimizer.zero_grad = keep  # type: ignore[method-assign]
    metrics = trainer.step(groups)
    trainer.optimizer.zero_grad = clear  # type: ignore[method-assign]
    return found, metrics


def weights(policy: Policy) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in whole_weights(policy)}


def work(folder: Path, out: Path) -> dict[str, Any]:
    """Everything that the tests look at."""
    torch.manual_seed(process_rank())
    policy = load_policy(folder)
    trainer = GrpoTrainer(policy, config(), BANNED)
    first, second, third = batches(policy)
    gradients, metrics = first_gradients(trainer, first)
    steps = [metrics, trainer.step(second)]
    save_sharded(out / "checkpoint", policy, trainer, {"step": 2})
    saved, drawn = weights(policy), torch.rand(3)
    steps.append(trainer.step(third))

    other = load_policy(folder)
    resumed = GrpoTrainer(other, config(), BANNED)
    extra = load_sharded(out / "checkpoint", other, resumed)
    same_draw = torch.equal(drawn, torch.rand(3))
    resumed.step(third)
    found = {
        "gradients": gradients,
        "steps": steps,
        "saved": saved,
        "after": weights(policy),
        "after_resumed": weights(other),
        "extra": extra,
        "num_updates": resumed.num_updates,
        "same_draw": same_draw,
        "num_own_weights": sum(w.to_local().numel() for w in trainer.parameters.values()),
    }
    AcceleratorState._reset_state(True)
    precision.cpu_multiplies_bf16 = lambda: True  # emulated where it is not so
    third_policy = load_policy(folder)
    found["bf16"] = GrpoTrainer(third_policy, config(bf16=True, num_minibatches=2), BANNED).step(first)
    return found


if __name__ == "__main__":
    dist.init_process_group("gloo")
    result = work(Path(sys.argv[1]), Path(sys.argv[2]))
    if process_rank() == 0:
        torch.save(result, Path(sys.argv[2]) / "found.pt")
    dist.destroy_process_group()
