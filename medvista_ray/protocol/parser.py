"""Reads one turn of the policy. Never raises, never guesses: anything but the grammar is error E1, with a reason.

A valid turn is `<think>...</think>` and then either one `<tool_call>{"name": ..., "arguments": {...}}</tool_call>` or
one `<answer>...</answer>`; only white space may stand between and around them. Called by the environment.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any, NoReturn

from medvista_ray.protocol.grammar import TAGS, ToolCall
from medvista_ray.types import ErrorCode

MAX_TURN_CHARACTERS = 32_768
"""A longer turn is refused unread, so that a run-away generation costs nothing."""

_TAG = re.compile("|".join(map(re.escape, TAGS)))
_FORMS = (
    ["<think>", "</think>", "<tool_call>", "</tool_call>"],
    ["<think>", "</think>", "<answer>", "</answer>"],
)


@dataclass(frozen=True)
class ParsedTurn:
    """A turn's parts. Exactly one of `call`, `answer` and `error` is set."""

    think: str = ""
    call: ToolCall | None = None
    answer: str | None = None
    error: ErrorCode | None = None
    message: str = ""
    """What broke the grammar, in words for the policy."""


class _GrammarError(Exception):
    """Carries the reason from where it is found to `parse`; never leaves this module."""


def parse(text: str) -> ParsedTurn:
    """Read one turn; a turn that breaks the grammar has error E1 and a message that says how."""
    try:
        return _parse(text)
    except _GrammarError as error:
        return ParsedTurn(error=ErrorCode.E1, message=str(error))


def _parse(text: str) -> ParsedTurn:
    if len(text) > MAX_TURN_CHARACTERS:
        raise _GrammarError(f"the turn is longer than {MAX_TURN_CHARACTERS} characters")
    if not text.strip():
        raise _GrammarError("the turn is empty")
    tags = _TAG.findall(text)
    if tags not in _FORMS:
        raise _GrammarError(_wrong_tags(tags))
    before, think, between, body, after = _TAG.split(text)
    for part, place in ((before, "before <think>"), (between, "after </think>"), (after, f"after {tags[-1]}")):
        if part.strip():
            raise _GrammarError(f"text {place}")
    if tags[-1] == "</tool_call>":
        return ParsedTurn(think=think.strip(), call=_read_call(body))
    if not body.strip():
        raise _GrammarError("the answer is empty")
    return ParsedTurn(think=think.strip(), answer=body.strip())


def _wrong_tags(tags: list[str]) -> str:
    """Say what is wrong with a sequence of tags that is neither form."""
    if tags[:1] != ["<think>"]:
        return "the turn must start with <think>"
    if tags[1:2] != ["</think>"]:
        return f"{tags[1]} inside <think>" if len(tags) > 1 else "<think> is not closed"
    if len(tags) == 2:
        return "no <tool_call> and no <answer> after </think>"
    opening, *rest = tags[2:]
    if opening not in ("<tool_call>", "<answer>"):
        return f"{opening} after </think>; expected <tool_call> or <answer>"
    closing = opening.replace("<", "</")
    if not rest:
        return f"{opening} is not closed"
    if rest[0] != closing:
        return f"{rest[0]} inside {opening}"
    return f"{rest[1]} after {closing}; one call or one answer per turn"


def _read_call(body: str) -> ToolCall:
    tree = _read_json(body)
    if not isinstance(tree, dict):
        raise _GrammarError('the call must be {"name": ..., "arguments": {...}}')
    call: dict[str, Any] = tree  # pyright: ignore[reportUnknownVariableType]
    for key in ("name", "arguments"):
        if key not in call:
            raise _GrammarError(f'the call has no "{key}"')
    if len(call) > 2:
        raise _GrammarError('the call has keys other than "name" and "arguments"')
    name, arguments = call["name"], call["arguments"]
    if not isinstance(name, str) or not name:
        raise _GrammarError('"name" must be a string')
    if not isinstance(arguments, dict):
        raise _GrammarError('"arguments" must be an object')
    return ToolCall(name, arguments)  # pyright: ignore[reportUnknownArgumentType]


def _read_json(body: str) -> Any:
    """Strict JSON: no duplicate keys, no NaN or infinity, no unpaired surrogates (they cannot be encoded again)."""
    try:
        tree = json.loads(
            body, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite, parse_int=_short_int
        )
        json.dumps(tree, ensure_ascii=False).encode()
    except json.JSONDecodeError as error:
        raise _GrammarError(f"the call is not JSON: {error.msg} at character {error.pos}") from error
    except UnicodeEncodeError as error:
        raise _GrammarError("the call is not JSON: it holds an unpaired surrogate") from error
    except RecursionError as error:
        raise _GrammarError("the call is not JSON: it is nested too deeply") from error
    return tree


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    tree = dict(pairs)
    if len(tree) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _GrammarError(f"key {twice[:40]!r} occurs twice")
    return tree


def _refuse_constant(name: str) -> NoReturn:
    raise _GrammarError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise _GrammarError("a number is too large")
    return value


def _short_int(digits: str) -> int:
    if len(digits) > 19:
        raise _GrammarError("a number is too large")
    return int(digits)
