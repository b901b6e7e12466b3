"""The system prompt, made from the tools' own schemas, so that what is said is what is checked.

Invariant: it depends on nothing but the tools on offer, the budget and the style; equal inputs give equal text (and a
shared prefix cache). Kept compact on purpose: with the tiny policy's tokens about 55 a tool, 20 by names alone, 9 by the required
ones. Called by the rollout loop.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from medvista_ray.tools.base import Tool

PromptStyle = Literal["full", "names", "required"]
"""What is told of a tool: types, defaults and purpose; its name and those of its arguments; or of the required ones only."""
_ANSWER_FORM = "<think>...</think><answer>...</answer>"
_CALL_FORM = '<think>...</think><tool_call>{"name": "...", "arguments": {...}}</tool_call>'


def system_prompt(specs: Sequence[type[Tool]], max_calls: int, style: PromptStyle = "full") -> str:
    """What the policy is told first. No `specs`: only to think and to answer."""
    return _system_prompt(tuple(specs), max_calls, style)


@lru_cache(maxsize=64)
def _system_prompt(specs: tuple[type[Tool], ...], max_calls: int, style: PromptStyle) -> str:
    """Cached: every episode asks, and a tool's schema takes pydantic a millisecond."""
    if not specs:
        return f"Think, then answer: {_ANSWER_FORM}"
    lines = [
        f"Think, then call one tool: {_CALL_FORM}",
        f"or answer: {_ANSWER_FORM}",
        f"At most {max_calls} calls. Boxes are [x0, y0, x1, y1], integers 0..1000. Tools:",
        *(_line(spec, style) for spec in specs),
    ]
    return "\n".join(lines)


def _line(spec: type[Tool], style: PromptStyle) -> str:
    return {"full": spec.signature, "names": spec.names, "required": spec.required}[style]()
