"""Keeps an engine from ever sampling a banned token: minus infinity on its logit, for every request alike.

Owns the ban inside vLLM's worker. A list of allowed ids per request would say the same, but is copied, sent and turned
into a mask for each of them, and has the length of the vocabulary. vLLM makes the class from `ENTRY`; importing this
module imports vLLM.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

if TYPE_CHECKING:
    from vllm.config import VllmConfig


class BanTokens(LogitsProcessor):
    """Reads what is banned from the engine's `additional_config` (see `vllm_settings.ban_config`)."""

    def __init__(self, vllm_config: VllmConfig, device: torch.device, is_pin_memory: bool) -> None:
        del is_pin_memory
        config: Any = vllm_config.additional_config
        self._banned = torch.tensor(config["medvista_banned"], dtype=torch.long, device=device)
        self._num_tokens: int = config["medvista_num_tokens"]

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """`logits` [N, V], changed in place."""
        logits[:, self._num_tokens :] = float("-inf")
        return logits.index_fill_(1, self._banned, float("-inf"))

    def is_argmax_invariant(self) -> bool:
        """Greedy sampling must not pick one either."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Nothing depends on the batch."""
