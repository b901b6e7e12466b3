"""Holds a contributor's tool to the contract and reports every violation at once.

Owns the rules, each with a name. Invariant: never raises for a fault of the tool; no rule depends on the tool's purpose.
The tool runs on synthetic pictures (16-bit grey, colour, one pixel, constant) with arguments made up from its schema.
Called by `medvista-ray check tool`.
"""

from __future__ import annotations

import itertools
import json
import pickle
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
from pydantic import BaseModel

from medvista_ray.tools.base import Family, Tool, ToolContext
from medvista_ray.tools.execution import execute
from medvista_ray.types import ErrorCode, Mask, MedImage, ToolOutcome

MAX_DESCRIPTION, MAX_REPLY = 200, 4000
"""Characters: both stand in every prompt or context."""
TIME_LIMIT_S = 30.0
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")


@dataclass(frozen=True)
class Violation:
    """One broken rule."""

    rule: str
    message: str


def check_tool(spec: Any, arguments: Mapping[str, Any] | None = None) -> list[Violation]:
    """Every violation of `spec`; none if it is empty. `arguments`: valid ones, where none can be made up."""
    if not (isinstance(spec, type) and issubclass(spec, Tool)):
        return [Violation("class", f"{spec!r} is not a subclass of medvista_ray.tools.base.Tool")]
    found = [Violation(rule, message) for rule, message in _declaration(spec)]
    if any(violation.rule == "args" for violation in found):
        return found
    try:
        tool = spec()
        tool.setup()
        tool.probe()
    except Exception as error:  # fault boundary: a contributor's code
        return [*found, Violation("setup", f"constructor, setup() or probe() raised {type(error).__name__}: {error}")]
    return [*found, *(Violation(rule, message) for rule, message in _behaviour(tool, arguments))]


def _declaration(spec: type[Tool]) -> Iterator[tuple[str, str]]:
    name, description = getattr(spec, "name", None), getattr(spec, "description", None)
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        yield "name", f"name = {name!r}: lower-case letters, digits and _ needed, at most 40"
    if getattr(spec, "family", None) not in get_args(Family):
        yield "family", f"family = {getattr(spec, 'family', None)!r}: one of {', '.join(get_args(Family))} needed"
    if not isinstance(description, str) or not 0 < len(description.strip()) <= MAX_DESCRIPTION:
        yield "description", f"description = {description!r}: one short sentence needed, at most {MAX_DESCRIPTION} characters"
    args = getattr(spec, "Args", None)
    if not (isinstance(args, type) and issubclass(args, BaseModel)):
        yield "args", f"Args = {args!r}: a pydantic model needed"
        return
    if args.model_config.get("extra") != "forbid":
        yield "args-extra", 'Args accepts unknown keys: extra="forbid" needed (subclass ToolArgs)'
    for key, item in args.model_json_schema().get("properties", {}).items():
        if key.endswith(("image_index", "mask_index")) and _bounds(item).get("minimum") is None:
            yield "args-index", f"Args.{key} takes negative numbers: annotate it as Index"
    if getattr(spec, "num_parallel", 1) < 1:
        yield "num_parallel", f"num_parallel = {spec.num_parallel}: at least 1 needed"


def _bounds(item: Mapping[str, Any]) -> Mapping[str, Any]:
    options = [option for option in item.get("anyOf", (item,)) if option.get("type") != "null"]
    return options[0] if options else item


def _behaviour(tool: Tool, arguments: Mapping[str, Any] | None) -> Iterator[tuple[str, str]]:
    context = _context()
    valid = arguments if arguments is not None else _accepted(tool, context)
    if valid is None:
        yield "arguments", "no arguments made up from the schema are accepted; give some with --args"
        return
    start = time.perf_counter()
    outcome = execute(tool, valid, context)
    seconds = time.perf_counter() - start
    if outcome.result is None:
        yield "run", f"{json.dumps(dict(valid))} gives {outcome.error}: {outcome.message}"
        return
    if seconds > TIME_LIMIT_S:
        yield "time", f"a call took {seconds:.1f} s; the limit is {TIME_LIMIT_S:g} s"
    yield from _result(outcome, context)
    yield from _repeated(tool, valid, outcome)
    yield from _refusals(tool, valid, context)
    yield from _odd_pictures(tool, valid)


def _result(outcome: ToolOutcome, context: ToolContext) -> Iterator[tuple[str, str]]:
    result = outcome.result
    assert result is not None
    if len(result.text) > MAX_REPLY:
        yield "reply", f"the text has {len(result.text)} characters; at most {MAX_REPLY} fit an episode"
    if not all(isinstance(image, MedImage) and image.pixels.ndim in (2, 3) for image in result.images):  # pyright: ignore[reportUnnecessaryIsInstance]
        yield "images", "images must be MedImage of [H, W] or [H, W, 3]"
    try:
        json.dumps(dict(result.data), allow_nan=False)
    except (TypeError, ValueError) as error:
        yield "data", f"data is not plain JSON: {error}"
    try:
        pickle.loads(pickle.dumps(result))
    except Exception as error:  # fault boundary: anything may be hidden in a result
        yield "pickle", f"the result does not pickle, so it cannot cross processes: {error}"
    if any(
        not np.array_equal(image.pixels, fresh.pixels) for image, fresh in zip(context.images.values(), _pictures(), strict=True)
    ):
        yield "mutation", "the call changed a picture of the episode: copy before you write"


def _repeated(tool: Tool, valid: Mapping[str, Any], first: ToolOutcome) -> Iterator[tuple[str, str]]:
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda _: execute(tool, valid, _context()), range(4)))
    if any(outcome.result is None for outcome in again):
        yield "threads", "a call that works alone fails when four run at once"
    elif any(outcome.result.text != first.result.text for outcome in again if outcome.result and first.result):
        yield "deterministic", "the same call on the same pictures gives another text"


def _refusals(tool: Tool, valid: Mapping[str, Any], context: ToolContext) -> Iterator[tuple[str, str]]:
    """What a policy gets wrong must come back under the right code."""
    cases: list[tuple[str, Mapping[str, Any], ErrorCode]] = [("an unknown key", {**valid, "no_such_key": 1}, ErrorCode.E2)]
    schema = type(tool).Args.model_json_schema()
    cases += [(f"no {key}", {k: v for k, v in valid.items() if k != key}, ErrorCode.E2) for key in schema.get("required", ())]
    cases += [(f"{key} of a wrong type", {**valid, key: {"a": []}}, ErrorCode.E3) for key in valid]
    indices = [key for key in schema.get("properties", {}) if key.endswith("image_index")]
    cases += [(f"{key} of no picture", {**valid, key: 99}, ErrorCode.E4) for key in indices]
    for what, given, code in cases:
        outcome = execute(tool, given, context)
        if outcome.error is not code:
            yield "error-code", f"{what} gives {outcome.error or 'a result'}, not {code}: {outcome.message}"


def _odd_pictures(tool: Tool, valid: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    pictures: dict[str, np.ndarray] = {
        "one pixel": np.zeros((1, 1), np.int16),
        "constant": np.full((40, 50), 7, np.int16),
        "16-bit": np.full((40, 50), 65535, np.uint16),
        "not finite": np.full((40, 50), np.nan, np.float32),
        "thin": np.arange(300, dtype=np.int16).reshape(300, 1),
    }
    for name, pixels in pictures.items():
        image = MedImage(pixels=pixels, modality="CT")
        mask = Mask(0, np.ones(pixels.shape, np.bool_))
        outcome = execute(tool, valid, ToolContext({0: image, 1: image}, {0: mask}))
        if outcome.error is ErrorCode.E5:
            yield "odd-picture", f"a picture that is {name} breaks it (raise ToolArgumentError instead): {outcome.message}"


def _pictures() -> tuple[MedImage, MedImage]:
    rng = np.random.default_rng(0)
    grey = rng.integers(-1000, 1000, (120, 160)).astype(np.int16)
    colour = rng.integers(0, 255, (120, 160, 3)).astype(np.uint8)
    return MedImage(pixels=grey, modality="CT", spacing_mm=(1.0, 1.0), unit="HU"), MedImage(pixels=colour, modality="histology")


def _context() -> ToolContext:
    mask = np.zeros((120, 160), np.bool_)
    mask[30:90, 40:120] = True
    return ToolContext(dict(enumerate(_pictures())), {0: Mask(0, mask)})


def _accepted(tool: Tool, context: ToolContext) -> Mapping[str, Any] | None:
    """Arguments that run: the required ones, and as few of the others as it takes."""
    schema = type(tool).Args.model_json_schema()
    values = {key: _example(key, item, schema) for key, item in schema.get("properties", {}).items()}
    required = [key for key in schema.get("required", ()) if key in values]
    others = [key for key in values if key not in required]
    best: Mapping[str, Any] | None = None
    for extra in itertools.chain.from_iterable(itertools.combinations(others, num) for num in range(3)):
        given = {key: values[key] for key in (*required, *extra)}
        error = execute(tool, given, context).error
        if error is None:
            return given
        if error is ErrorCode.E5 and best is None:  # accepted, but broken: worth reporting as such
            best = given
    return best


def _example(key: str, item: Mapping[str, Any], schema: Mapping[str, Any]) -> Any:
    """A plausible value of a JSON schema."""
    item = _bounds(item)
    if "$ref" in item:
        item = schema["$defs"][item["$ref"].rsplit("/", 1)[-1]]
    if "enum" in item:
        return item["enum"][0]
    makers: dict[str, Callable[[], Any]] = {
        "array": lambda: [100, 100, 900, 900],
        "integer": lambda: 0 if key.endswith("index") else max(int(item.get("minimum", 1)), 1),
        "number": lambda: float(item.get("minimum", 1.0)) or 1.0,
        "boolean": lambda: True,
        "string": lambda: "lung",
    }
    return makers.get(str(item.get("type")), lambda: item.get("const"))()
