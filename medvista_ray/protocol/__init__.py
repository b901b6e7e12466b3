"""The think / tool_call / answer grammar: rendering, parsing, and the system prompt."""

from __future__ import annotations

from medvista_ray.protocol.grammar import STOP_STRINGS, TAGS, ToolCall, render_call, render_turn
from medvista_ray.protocol.parser import ParsedTurn, parse
from medvista_ray.protocol.prompt import system_prompt

__all__ = ["STOP_STRINGS", "TAGS", "ParsedTurn", "ToolCall", "parse", "render_call", "render_turn", "system_prompt"]
