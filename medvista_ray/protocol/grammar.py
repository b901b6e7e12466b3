"""The grammar's words: the tags, the stop strings, and how a turn is written.

Invariant: whatever `render_turn` writes, `parser.parse` reads back unchanged. Called by the system prompt, the
scripted expert, the chat format (which keeps the tags whole) and the engines (which stop at the closing tags).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TAGS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<answer>", "</answer>")
STOP_STRINGS = ("</tool_call>", "</answer>")
"""Generation stops after one of these; the tag itself belongs to the turn."""


@dataclass(frozen=True)
class ToolCall:
    """A call as the policy wrote it; the arguments are plain JSON values, not yet checked against any schema."""

    name: str
    arguments: Mapping[str, Any]


def render_call(name: str, arguments: Mapping[str, Any]) -> str:
    """The call element, tags included, with the JSON spaced as in the system prompt."""
    body = json.dumps({"name": name, "arguments": dict(arguments)}, ensure_ascii=False)
    if any(tag in body for tag in TAGS):  # within a string of the JSON, where a tag would end the call
        body = body.replace("<", "\\u003c")
    return f"<tool_call>{body}</tool_call>"


def render_turn(think: str, action: ToolCall | str) -> str:
    """One valid turn: a thought, then the call (a ToolCall) or the answer (a string)."""
    if isinstance(action, ToolCall):
        return f"<think>{think}</think>{render_call(action.name, action.arguments)}"
    return f"<think>{think}</think><answer>{action}</answer>"
