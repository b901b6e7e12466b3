"""What the loop asks of whatever samples tokens: vLLM, a scripted expert, or a script in a test.

Invariant: an engine gets UN-expanded ids (one placeholder per picture) and gives back the expanded ids it really ran
on, so that the learner trains on those and never builds them a second way. Called by `rollout.loop`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Prompt:
    """What the engine is shown."""

    token_ids: list[int]
    """One placeholder per picture, not expanded."""
    images: list[NDArray[np.uint8]]
    """One [H, W, 3] picture per placeholder, in order."""


@dataclass(frozen=True)
class Sampling:
    """How to sample one turn."""

    temperature: float
    """0 is greedy."""
    max_tokens: int


@dataclass(frozen=True)
class Completion:
    """What the engine sampled. S: sampled tokens, the closing tag (and an end-of-turn token, if sampled) included."""

    prompt_ids: list[int]
    """The prompt as it ran, every placeholder expanded to the picture's tokens."""
    token_ids: list[int]
    """[S]"""
    logprobs: NDArray[np.float32]
    """[S] under the sampling distribution (temperature and bans applied)."""
    versions: NDArray[np.int32]
    """[S] policy version that sampled each token; never decreases."""
    text: str
    """The sampled tokens as text, for logs; the loop decodes `token_ids` itself."""
    stopped: bool
    """Whether the turn ended at a closing tag or the end-of-turn token, not at `max_tokens`."""


class Engine(Protocol):
    """Samples one turn."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """Sample until a closing tag (`protocol.STOP_STRINGS`), the end-of-turn token or `sampling.max_tokens`."""
        ...
