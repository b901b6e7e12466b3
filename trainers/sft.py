"""Supervised fine-tuning: imitate whole episodes, on the tokens a policy would have sampled.

Invariant: each episode is used once per epoch, in an order that the seed fixes; the loss of an update is the mean over
its trained tokens, however it is cut into micro-batches. Called by the learner.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch

from medvista_ray.config import LearnerConfig, SftConfig
from medvista_ray.models.batching import build_batch, split_microbatches
from medvista_ray.models.logprobs import sampled_logprobs
from medvista_ray.models.policy import Policy, trainable_parameters
from medvista_ray.types import Episode
from trainers.optim import make_accelerator, make_optimizer, set_learning_rate, warmup_cosine

Progress = Callable[[int, int, dict[str, float]], None]
"""Called after each update with the number of updates done, their total, and the update's metrics."""


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
    tokens_per_microbatch: int = 8192,
) -> list[dict[str, float]]:
    """Train `policy` in place; returns the metrics of each update (loss in nats per token, accuracy-free).

    `banned` tokens are outside the softmax, as in sampling. The rate warms up linearly and decays along a cosine.
    """
    accelerator = make_accelerator(learner)
    policy.model.to(accelerator.device)
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
        loss = 0.0
        for rows in split_microbatches(batch, tokens_per_microbatch):
            tensors = build_batch([batch[i] for i in rows], policy).to(accelerator.device)
            with accelerator.autocast():
                part = -sampled_logprobs(policy, tensors, 1.0, banned).values.sum() / num_tokens
            accelerator.backward(part)
            loss += float(part.detach())
        norm = accelerator.clip_grad_norm_(weights, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        seconds = time.perf_counter() - started
        history.append(
            {
                "loss": loss,
                "grad_norm": float(norm or 0.0),
                "learning_rate": rate,
                "num_tokens": float(num_tokens),
                "duration_s": seconds,
                "tokens_per_s": sum(len(e.token_ids) for e in batch) / seconds,
            }
        )
        if progress:
            progress(step + 1, len(plan), history[-1])
    return history


def _plan(num_episodes: int, config: SftConfig, seed: int) -> list[list[int]]:
    """Episode indices of each update; the last update of an epoch may be smaller."""
    generator = torch.Generator().manual_seed(seed)
    plan: list[list[int]] = []
    for _ in range(config.num_epochs):
        order: list[int] = torch.randperm(num_episodes, generator=generator).tolist()
        plan += [order[start : start + config.batch_size] for start in range(0, num_episodes, config.batch_size)]
    return plan
