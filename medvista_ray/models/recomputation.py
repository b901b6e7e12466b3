"""Activation checkpointing: a text layer keeps its input only and is computed again in the backward pass.

Invariant: values and gradients are as without it. transformers' own switch does not fit: it works in training mode only
(with its dropout), and it would compute a layer again outside the packed attention that the first pass ran under.
Called by whoever loads a policy for training.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from functools import partial

from torch.utils.checkpoint import checkpoint

from medvista_ray.models.attention import PACKED, attention_of
from medvista_ray.models.policy import Policy


def checkpoint_activations(policy: Policy) -> None:
    """From now on, in every forward of `sampled_logprobs` with gradients. In place; call it once."""
    text = policy.model.model.language_model

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        """Of the first pass, which runs under its caller's, and of the second."""
        return nullcontext(), attention_of(text, PACKED)

    for layer in text.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, context_fn=contexts)
