"""From raw arguments to a tool's `Args`, or to a refusal in words that a policy (and a person) can act on.

Invariant: never raises and never guesses. A wrong or missing key is E2, a wrong type or range E3. Called by both
clients and by every Serve replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from medvista_ray.errors import did_you_mean
from medvista_ray.types import ErrorCode

_KEY_ERRORS = {"missing", "extra_forbidden", "one_of"}
_MAX_VALUE_CHARS = 60


@dataclass(frozen=True)
class Refusal:
    """Why arguments were not accepted."""

    code: ErrorCode
    message: str


def parse_arguments(schema: type[BaseModel], arguments: Any) -> BaseModel | Refusal:
    """An instance of `schema`, or the most basic thing that is wrong with `arguments`."""
    if not isinstance(arguments, Mapping):
        return Refusal(ErrorCode.E3, f"arguments = {_short(arguments)}: an object of key and value needed")
    try:
        return schema.model_validate(arguments)
    except ValidationError as error:
        return _refusal(schema, error.errors(include_url=False))


def require_one_of(args: BaseModel, *keys: str) -> None:
    """For model validators: exactly one of `keys` must be given. Raises what pydantic collects (E2)."""
    given = [key for key in keys if getattr(args, key) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        words = "give exactly one of {keys}; found {found}"
        raise PydanticCustomError("one_of", words, {"keys": ", ".join(keys), "found": found})


def _refusal(schema: type[BaseModel], problems: list[ErrorDetails]) -> Refusal:
    # Deeper down, a "missing" item is a list that is too short: a wrong value, not a wrong key.
    key_problems = [problem for problem in problems if problem["type"] in _KEY_ERRORS and len(problem["loc"]) <= 1]
    code = ErrorCode.E2 if key_problems else ErrorCode.E3
    # An unknown key comes before the missing one it probably stands for.
    first = min(key_problems or problems, key=lambda problem: problem["type"] == "missing")
    return Refusal(code, _words(schema, first))


def _words(schema: type[BaseModel], problem: ErrorDetails) -> str:
    key = str(problem["loc"][0]) if problem["loc"] else ""
    if problem["type"] == "extra_forbidden" and len(problem["loc"]) == 1:
        return f"unknown key {_short(key)} (value {_short(problem['input'])}); {did_you_mean(key, schema.model_fields)}"
    if problem["type"] == "missing" and len(problem["loc"]) == 1:
        return f"missing key {key!r}; keys: {', '.join(schema.model_fields)}"
    if problem["type"] == "missing":
        return f"{key} = {_short(problem['input'])}: too few items"
    if not key:
        return problem["msg"]
    where = key + "".join(f"[{part}]" for part in problem["loc"][1:])
    return f"{where} = {_short(problem['input'])}: {problem['msg'].lower()}"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= _MAX_VALUE_CHARS else text[: _MAX_VALUE_CHARS - 3] + "..."
