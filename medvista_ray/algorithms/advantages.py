"""How much better than its group an episode was.

Invariant: a group whose rewards are all equal teaches nothing, so its advantages are exactly zero. Called by the GRPO
trainer.

Shapes: N groups, G episodes of a group.
"""

from __future__ import annotations

import torch


def group_advantages(rewards: torch.Tensor, epsilon: float = 1e-4) -> torch.Tensor:
    """[N, G] rewards -> [N, G] advantages (R - mean) / (std + epsilon), with the sample standard deviation (G - 1).

    Group-relative advantages: DeepSeekMath (arXiv 2402.03300, section 4.1.2); sample deviation and epsilon as in TRL.
    """
    rewards = rewards.to(torch.float32)
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True, correction=1)
    # Equal rewards can differ from their mean by rounding, which the small epsilon would blow up.
    varied = rewards.amax(dim=1, keepdim=True) > rewards.amin(dim=1, keepdim=True)
    return torch.where(varied, centred / (deviation + epsilon), torch.zeros_like(rewards))
