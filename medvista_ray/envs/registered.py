"""`import medvista_ray.envs.registered` makes `gymnasium.make("MedVista-v0")` known; importing it again is harmless.

`gymnasium.make("medvista_ray.envs.registered:MedVista-v0")` does both at once.
"""

from __future__ import annotations

import gymnasium as gym

ENV_ID = "MedVista-v0"

if ENV_ID not in gym.registry:
    gym.register(
        ENV_ID,
        entry_point="medvista_ray.envs.gym_env:MedVistaEnv",
        vector_entry_point="medvista_ray.envs.vector:MedVistaVectorEnv",
    )
