"""Why an episode without a mistake in its calls was wrong all the same: E4 or E6, by oracle.

Owns the use of the gold regions for this label alone. Invariant: it never changes a reward, and is never shown to a
policy. VISTA-Gym (arXiv 2511.19773, App. G.1) tells a call that aims at the wrong thing (E4) from a wrong reading of
a right output (E6) by a judge; here the gold regions decide, where the task has them. Called by the rewards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from medvista_ray.types import Box, ErrorCode, Task, Turn

MIN_COVERED = 0.25
"""Share of a gold region that a call's box must cover to have aimed at it."""


def diagnose(task: Task, turns: Sequence[Turn]) -> ErrorCode:
    """For a wrong answer after calls that all ran: E4 if no box of any call covers a gold region of picture 0, else E6.

    A task without gold regions, or an episode without a box in picture 0, is E6: nothing says that it aimed wrongly.
    """
    boxes = [box for turn in turns if turn.tool and turn.error is None for box in _boxes(turn.arguments)]
    if not boxes or not task.regions:
        return ErrorCode.E6
    aimed = any(covered(region, box) >= MIN_COVERED for region in task.regions for box in boxes)
    return ErrorCode.E6 if aimed else ErrorCode.E4


def covered(region: Box, box: Box) -> float:
    """Share of `region` that lies in `box`, 0..1."""
    width = min(region[2], box[2]) - max(region[0], box[0])
    height = min(region[3], box[3]) - max(region[1], box[1])
    area = (region[2] - region[0]) * (region[3] - region[1])
    return max(width, 0) * max(height, 0) / area if area > 0 else 0.0


def _boxes(arguments: Mapping[str, Any]) -> list[Box]:
    """The boxes of a call that ran (so they are well formed) in picture 0."""
    if arguments.get("image_index", 0) != 0:
        return []
    values = (value for key, value in arguments.items() if key.endswith("bbox") and value is not None)
    return [(value[0], value[1], value[2], value[3]) for value in values]
