"""The rewards by name. A reward is a function `(episode, config: RewardConfig) -> Episode`, the scored copy."""

from __future__ import annotations

from medvista_ray.registry import Registry

REWARDS = Registry("reward", {"composite": "medvista_ray.rewards.composite:score"})
