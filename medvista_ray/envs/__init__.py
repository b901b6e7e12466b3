"""The episode: reset and step, the budget of calls, and what the policy is shown."""

from __future__ import annotations

from medvista_ray.envs.episode import MedEnv

__all__ = ["MedEnv"]
