"""An InternVL of the tiny policy's shape with random weights, for tests that start an engine."""

from __future__ import annotations

from pathlib import Path

import torch

from medvista_ray.models.tiny_architecture import build_tiny_model, build_tiny_processor, save_policy_folder
from medvista_ray.models.tiny_tokenizer import build_tiny_tokenizer

SPREAD = 0.03
"""Standard deviation of a random change of every weight: large, so that stale weights anywhere show."""


def random_policy(folder: Path) -> Path:
    """With tied embeddings, and weights large enough that its choices depend on what it sees."""
    tokenizer = build_tiny_tokenizer(["which region of the picture is brighter than the other"] * 4, vocab_size=1600)
    model = build_tiny_model(tokenizer, seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * SPREAD)
    return save_policy_folder(model, build_tiny_processor(tokenizer), folder)
