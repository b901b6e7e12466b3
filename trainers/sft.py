"""Supervised fine-tuning: imitate whole episodes, on the tokens a policy would have sampled.

Invariant: each episode is used once per epoch, in an order that the seed fixes; the loss of an update is the mean over
its trained tokens, however it is cut into micro-batches and dealt out to processes. Called by the learner.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable, Sequence

import torch
from accelerate import Accelerator

from medvista_ray.config import LearnerConfig, SftConfig, TrainConfig
from medvista_ray.models.batching import Batch, build_batch, split_microbatches
from medvista_ray.models.policy import Policy, trainable_parameters
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.types import Episode
from trainers.optim import clip_gradients, make_accelerator, make_optimizer, set_learning_rate, warmup_cosine
from trainers.sharding import Forward, deal, gather, make_forward

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each update with the number of updates done, their total, and the update's metrics."""


def imitate(
    policy: Policy,
    episodes: Sequence[Episode],
    config: TrainConfig,
    progress: Progress | None = None,
    forward: Forward | None = None,
) -> list[dict[str, float]]:
    """`run_sft` as a run's configuration says."""
    return run_sft(
        policy,
        episodes,
        config.sft,
        config.learner,
        progress,
        seed=config.seed,
        banned=banned_token_ids(policy.tokenizer),
        train_vision=config.policy.train_vision,
        tokens_per_microbatch=config.grpo.tokens_per_microbatch,
        forward=forward,
    )


def run_sft(
    policy: Policy,
    episodes: Sequence[Episode],
    config: SftConfig,
    learner: LearnerConfig,
    progress: Progress | None = None,
    *,
    seed: int = 0,
    banned: Sequence[int] = (),
    train_vision: bool = True,
    tokens_per_microbatch: int = 4096,
    forward: Forward | None = None,
) -> list[dict[str, float]]:
    """Train `policy` in place; returns the metrics of each update (loss in nats per token, accuracy-free).

    `banned` tokens are outside the softmax, as in sampling. The rate warms up linearly and decays along a cosine.
    Several processes are given the same episodes, and `forward` if the policy is sharded already.
    """
    accelerator = make_accelerator(learner)
    policy.model.to(accelerator.device)
    trainable_parameters(policy, train_vision)
    # Sharding puts other parameter objects into the model, so the optimiser comes after it.
    forward = forward or make_forward(policy, accelerator)
    weights = list(trainable_parameters(policy, train_vision).values())
    optimizer = make_optimizer(weights, config.learning_rate, config.weight_decay, config.adam_eps)
    plan = _plan(len(episodes), config, seed)
    history: list[dict[str, float]] = []
    for step, chosen in enumerate(plan):
        started = time.perf_counter()
        rate = config.learning_rate * warmup_cosine(step, config.warmup_steps, len(plan))
        set_learning_rate(optimizer, rate)
        batch = [episodes[i] for i in chosen]
        num_tokens = sum(episode.num_sampled for episode in batch)
        parts: list[float] = []
        for rows, factor in deal(split_microbatches(batch, policy, tokens_per_microbatch)):
            tensors = build_batch([batch[i] for i in rows], policy).to(accelerator.device)
            parts += _backward(accelerator, forward, tensors, banned, num_tokens, factor)
        norm = clip_gradients(weights, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss = functools.reduce(operator.add, gather(parts), 0.0)  # from Python 3.12 on `sum` rounds otherwise
        metrics = {"loss": loss, "grad_norm": norm, "learning_rate": rate, "num_tokens": float(num_tokens)}
        history.append(metrics | _speed(batch, time.perf_counter() - started))
        if progress:
            progress(step + 1, len(plan), history[-1])
    return history


def _backward(
    accelerator: Accelerator, forward: Forward, batch: Batch, banned: Sequence[int], num_tokens: int, factor: float
) -> list[float]:
    """Add one micro-batch's gradients, times `factor`; its share of the loss, or none if it only keeps processes in step."""
    with accelerator.autocast():
        part = -forward(batch, 1.0, banned).values.sum() / num_tokens
    accelerator.backward(part * factor)
    return [float(part.detach())] if factor else []


def _speed(batch: Sequence[Episode], duration_s: float) -> dict[str, float]:
    return {"duration_s": duration_s, "tokens_per_s": sum(len(episode.token_ids) for episode in batch) / duration_s}


def _plan(num_episodes: int, config: SftConfig, seed: int) -> list[list[int]]:
    """Episode indices of each update; the last update of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    plan: list[list[int]] = []
    for _ in range(config.num_epochs):
        order: list[int] = torch.randperm(num_episodes, generator=generator).tolist()
        plan += [order[start : start + config.batch_size] for start in range(0, num_episodes, config.batch_size)]
    return plan
