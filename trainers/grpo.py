"""The GRPO learner: one call, one batch of groups, one new policy version.

Invariants: every group given is trained whole and once; gradients are those of the whole update, normalised by its
count of trained tokens, however it is cut into micro-batches and dealt out to processes. No Ray, no engine. Called by
the learner actor.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from medvista_ray.algorithms.advantages import group_advantages
from medvista_ray.algorithms.corrections import Bounds
from medvista_ray.algorithms.grpo import GrpoTerms, TokenSums, grpo_loss, merge_sums
from medvista_ray.config import TrainConfig
from medvista_ray.errors import InvariantError
from medvista_ray.models.batching import Batch, build_batch, split_microbatches
from medvista_ray.models.logprobs import sampled_logprobs
from medvista_ray.models.policy import Policy, trainable_parameters
from medvista_ray.rollout.chat import banned_token_ids
from medvista_ray.types import Episode, Group
from trainers.optim import clip_gradients, make_accelerator, make_optimizer, set_learning_rate, warmup_constant, warmup_linear
from trainers.sharding import Forward, deal, gather, make_forward


class GrpoTrainer:
    """Trains `policy` in place. Construct it after SFT: with kl_coef > 0 the policy as given becomes the reference."""

    def __init__(
        self, policy: Policy, config: TrainConfig, banned: Sequence[int] | None = None, forward: Forward | None = None
    ) -> None:
        """`banned`: token ids outside the softmax (None: what the rollout bans for this tokenizer). `forward`: of a policy
        that is sharded already."""
        self.policy = policy
        self.config = config.grpo
        self.temperature = config.rollout.temperature
        self.banned = tuple(banned_token_ids(policy.tokenizer) if banned is None else banned)
        self.accelerator = make_accelerator(config.learner)
        policy.model.to(self.accelerator.device)
        self.num_updates = 0
        """Optimiser updates done."""
        self.reference: Policy | None = None
        if self.config.kl_coef > 0.0:
            frozen = copy.deepcopy(policy.model).requires_grad_(False)
            self.reference = replace(policy, model=frozen)
        trainable_parameters(policy, config.policy.train_vision)
        # Sharding puts other parameter objects into the model, so the optimiser comes after it.
        self.forward = forward or make_forward(policy, self.accelerator)
        self.parameters = trainable_parameters(policy, config.policy.train_vision)
        self.optimizer = make_optimizer(
            self.parameters.values(), self.config.learning_rate, self.config.weight_decay, self.config.adam_eps
        )
        self.terms = GrpoTerms(
            clip_low=self.config.clip_low,
            clip_high=self.config.clip_high,
            bounds=Bounds(self.config.tis_cap, self.config.mask_low, self.config.mask_high),
            kl_coef=self.config.kl_coef,
            correction=self.config.correction,
        )

    def step(self, groups: Sequence[Group]) -> dict[str, float]:
        """Train on `groups`, each once; returns metrics (see `_metrics`).

        Raises InvariantError if there is nothing to train or the loss is not finite (the weights are then as before).
        """
        started = time.perf_counter()
        episodes = [episode for group in groups for episode in group.episodes]
        if sum(episode.num_sampled for episode in episodes) == 0:
            raise InvariantError(f"{len(groups)} groups hold no sampled token")
        advantages = _advantages(groups)
        parts = _minibatches(groups, self.config.num_minibatches)
        proximal = self._proximal(episodes, parts, advantages) if len(parts) > 1 else None
        updates = [self._update(episodes, part, advantages, proximal) for part in parts]
        metrics = _mean_of_updates(updates)
        metrics.update(_batch_metrics(episodes, time.perf_counter() - started))
        return metrics

    def state_dict(self) -> dict[str, Any]:
        """Optimiser, counter and (with a KL term) reference weights; the policy's own weights are saved beside it."""
        state: dict[str, Any] = {"optimizer": self.optimizer.state_dict(), "num_updates": self.num_updates}
        if self.reference is not None:
            state["reference"] = self.reference.model.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` gave."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.num_updates = int(state["num_updates"])
        if self.reference is not None:
            self.reference.model.load_state_dict(state["reference"])

    def _update(
        self, episodes: list[Episode], part: list[int], advantages: torch.Tensor, proximal: dict[int, torch.Tensor] | None
    ) -> dict[str, float]:
        """One optimiser update on the episodes numbered `part`."""
        num_tokens = sum(episodes[i].num_sampled for i in part)
        results: list[tuple[float, float, TokenSums]] = []
        for rows, factor in self._microbatches(episodes, part, advantages):
            anchor = torch.cat([proximal[i] for i in rows]) if proximal else None
            batch = build_batch([episodes[i] for i in rows], self.policy).to(self.accelerator.device)
            result = self._backward(batch, advantages[rows], max(1, num_tokens), factor, anchor)
            results += [result] if factor else []
        results = gather(results)
        loss = sum(result[0] for result in results)
        norm = self._apply(loss)
        sums = merge_sums([result[2] for result in results])
        return _metrics(loss, norm, sum(result[1] for result in results), sums)

    def _backward(
        self, batch: Batch, advantages: torch.Tensor, num_tokens: int, factor: float, anchor: torch.Tensor | None
    ) -> tuple[float, float, TokenSums]:
        """Add one micro-batch's gradients, times `factor`; `advantages` [B]. Its share of the loss, its entropy, its sums."""
        per_token = advantages.to(batch.loss_mask.device)[:, None].expand(batch.loss_mask.shape)[batch.loss_mask]
        reference = self._reference_logprobs(batch)
        with self.accelerator.autocast():
            sampled = self.forward(batch, self.temperature, self.banned)
        behaviour, rows = batch.behaviour[batch.loss_mask], batch.loss_mask.nonzero()[:, 0]
        loss, sums = grpo_loss(sampled.values, behaviour, per_token, self.terms, num_tokens, anchor, reference, rows)
        self.accelerator.backward(loss * factor)
        return float(loss.detach()), float(sampled.entropy.sum()), sums

    def _apply(self, loss: float) -> float:
        """Clip, step and clear the gradients; returns their norm before the clip."""
        norm = clip_gradients(self.parameters.values(), self.config.max_grad_norm)
        if not (abs(loss) < float("inf") and norm < float("inf")):
            self.optimizer.zero_grad(set_to_none=True)
            raise InvariantError(f"loss {loss} or gradient norm {norm} is not finite; the update was not applied")
        set_learning_rate(self.optimizer, self.config.learning_rate * self._rate_share())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_updates += 1
        return norm

    def _rate_share(self) -> float:
        """Of the peak learning rate, for the next update."""
        config = self.config
        if config.schedule == "linear":
            return warmup_linear(self.num_updates, config.warmup_steps, config.num_steps * config.num_minibatches)
        return warmup_constant(self.num_updates, config.warmup_steps)

    def _microbatches(self, episodes: list[Episode], part: list[int], advantages: torch.Tensor) -> list[tuple[list[int], float]]:
        """This process's micro-batches of `part`, as episode numbers, each with the factor of its loss.

        An episode whose advantage is zero adds exactly nothing to the gradient unless there is a KL term, so it is left out
        (its tokens count all the same), except where none has any: the step's metrics then come from all.
        """
        sampled = [i for i in part if episodes[i].num_sampled]
        chosen = [i for i in sampled if advantages[i] != 0.0 or self.reference is not None] or sampled
        split = split_microbatches([episodes[i] for i in chosen], self.policy, self.config.tokens_per_microbatch)
        return deal([[chosen[place] for place in rows] for rows in split])

    @torch.no_grad()
    def _proximal(self, episodes: list[Episode], parts: list[list[int]], advantages: torch.Tensor) -> dict[int, torch.Tensor]:
        """By episode number, of those that this process trains: [num_sampled] log-probabilities before the first update."""
        found: dict[int, torch.Tensor] = {}
        for rows, _ in (dealt for part in parts for dealt in self._microbatches(episodes, part, advantages)):
            batch = build_batch([episodes[i] for i in rows], self.policy).to(self.accelerator.device)
            with self.accelerator.autocast():
                values = self.forward(batch, self.temperature, self.banned).values
            found |= zip(rows, values.split([episodes[i].num_sampled for i in rows]), strict=True)
        return found

    @torch.no_grad()
    def _reference_logprobs(self, batch: Batch) -> torch.Tensor | None:
        if self.reference is None:
            return None
        with self.accelerator.autocast():
            return sampled_logprobs(self.reference, batch, self.temperature, self.banned).values


def _advantages(groups: Sequence[Group]) -> torch.Tensor:
    """[E] over the episodes of all groups in order."""
    rewards = [torch.tensor([[episode.reward for episode in group.episodes]]) for group in groups]
    return torch.cat([group_advantages(row)[0] for row in rewards])


def _minibatches(groups: Sequence[Group], num_minibatches: int) -> list[list[int]]:
    """Episode numbers of each update: whole groups, dealt out in turn."""
    parts: list[list[int]] = [[] for _ in range(min(num_minibatches, len(groups)))]
    first = 0
    for place, group in enumerate(groups):
        parts[place % len(parts)] += range(first, first + len(group.episodes))
        first += len(group.episodes)
    return parts


def _metrics(loss: float, norm: float, entropy: float, sums: TokenSums) -> dict[str, float]:
    """Per-token means of one update (nats; fractions of tokens)."""
    count = max(1, sums.num_tokens)
    return {
        "loss": loss,
        "grad_norm": norm,
        "entropy": entropy / count,
        "mismatch_kl": sums.mismatch_kl / count,
        "reference_kl": sums.reference_kl / count,
        "clip_frac": sums.clipped / count,
        "tis_frac": sums.truncated / count,
        "masked_frac": sums.masked / count,
        "ratio_mean": sums.ratio / count,
        "ratio_min": sums.ratio_min,
        "ratio_max": sums.ratio_max,
        **{f"ratio_hist_{place}": number / count for place, number in enumerate(sums.histogram)},
    }


def _mean_of_updates(updates: list[dict[str, float]]) -> dict[str, float]:
    merge = {"ratio_min": min, "ratio_max": max}
    return {
        name: merge[name](u[name] for u in updates) if name in merge else sum(u[name] for u in updates) / len(updates)
        for name in updates[0]
    }


def _batch_metrics(episodes: Sequence[Episode], duration_s: float) -> dict[str, float]:
    versions = [episode.versions[episode.loss_mask] for episode in episodes if episode.num_sampled]
    num_tokens = sum(len(episode.token_ids) for episode in episodes)
    return {
        "reward_mean": sum(episode.reward for episode in episodes) / len(episodes),
        "num_episodes": float(len(episodes)),
        "num_tokens": float(num_tokens),
        "num_trained_tokens": float(sum(episode.num_sampled for episode in episodes)),
        "version_min": float(min(v.min() for v in versions)),
        "version_max": float(max(v.max() for v in versions)),
        "version_span": float(max(v.max() - v.min() for v in versions)),
        "duration_s": duration_s,
        "tokens_per_s": num_tokens / duration_s,
    }
