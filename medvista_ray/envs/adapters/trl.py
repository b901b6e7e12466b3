"""The environment as TRL's `environment_factory` (trl 1.16): each tool is a method that the model calls natively.

Owns the translation of a tool's schema into a typed, documented method, and of results into content blocks (pictures
included). Invariant: a call goes through the very environment of the training job, so budgets, error codes and reward
are the same; only the grammar is the model's own chat template's. The final answer is a tool call too: `submit_answer`.
Imports nothing of TRL, which finds the methods by inspection.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from medvista_ray.envs.adapters.messages import picture
from medvista_ray.envs.portal import wait_for
from medvista_ray.envs.session import Session
from medvista_ray.envs.setup import Workshop
from medvista_ray.protocol import ToolCall, render_turn
from medvista_ray.tools.base import Tool
from medvista_ray.types import Observation

_TYPES: dict[str, Any] = {"integer": int, "number": float, "string": str, "boolean": bool}


def environment_factory(workshop: Workshop) -> type[Any]:
    """What `GRPOTrainer(environment_factory=...)` takes: a class whose methods are the tools on offer.

    Its instances own their reward (`get_reward`), so `reward_funcs` may be left out.
    """
    specs = workshop.client.specs if workshop.client else ()
    methods = {spec.name: _method(spec) for spec in specs}
    return type("MedVistaTools", (TRLEnvironment,), {"_workshop": workshop, **methods})


def dataset_rows(workshop: Workshop) -> list[dict[str, Any]]:
    """Rows for `datasets.Dataset.from_list`: the task's id; question and pictures come from `reset`."""
    text = f"Use the tools, at most {workshop.settings.max_calls} calls, then call submit_answer once.\n"
    return [{"prompt": [{"role": "user", "content": text}], "task_id": task.id} for task in workshop.tasks]


class TRLEnvironment:
    """One rollout. Made by `environment_factory`; TRL takes its public methods for tools."""

    _workshop: Workshop

    def __init__(self) -> None:
        self._session: Session = self._workshop.session()

    def reset(self, task_id: str, **_: Any) -> list[dict[str, Any]]:
        """Start the row's task: its pictures and its question, as content blocks."""
        return self._blocks(wait_for(self._session.reset(self._workshop.task(task_id))))

    def submit_answer(self, answer: str) -> str:
        """Give the final answer; the episode ends.

        Args:
            answer: The answer to the question, nothing else.

        Returns:
            A confirmation.
        """
        if self._session.episode is None:
            wait_for(self._session.step(render_turn("", answer)))
        return "The answer is noted."

    def get_reward(self) -> float:
        """The training job's reward; an episode without an answer is scored as truncated."""
        return (self._session.episode or self._session.give_up()).reward

    def _call(self, name: str, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self._session.episode is not None:
            return [{"type": "text", "text": "The episode is over."}]
        step = wait_for(self._session.step(render_turn("", ToolCall(name, arguments))))
        return self._blocks(step.observation)

    def _blocks(self, observation: Observation) -> list[dict[str, Any]]:
        side = self._workshop.settings.image_side
        pictures = [{"type": "image", "image": picture(image, side)} for image in observation.images]
        return [*pictures, {"type": "text", "text": observation.text}]


def _method(spec: type[Tool]) -> Callable[..., list[dict[str, Any]]]:
    """A method that calls the tool, with the signature and the Google-style docstring that chat templates read."""

    def call(self: TRLEnvironment, **arguments: Any) -> list[dict[str, Any]]:
        return self._call(spec.name, {key: value for key, value in arguments.items() if value is not None})  # pyright: ignore[reportPrivateUsage]

    schema = spec.Args.model_json_schema()
    required = set(schema.get("required", ()))
    kinds = {key: _kind(item) for key, item in schema.get("properties", {}).items()}
    parameters = [inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for key in sorted(kinds, key=lambda name: name not in required):
        default = inspect.Parameter.empty if key in required else schema["properties"][key].get("default")
        annotation = kinds[key] if key in required or default is not None else kinds[key] | None
        parameters.append(inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    call.__signature__ = inspect.Signature(parameters, return_annotation=list)  # pyright: ignore[reportFunctionMemberAccess]
    call.__annotations__ = {p.name: p.annotation for p in parameters[1:]} | {"return": list}
    call.__name__ = call.__qualname__ = spec.name
    lines = [f"    {key}: {_meaning(schema['properties'][key])}" for key in kinds]
    call.__doc__ = "\n".join(
        [spec.description, "", *(["Args:", *lines, ""] if lines else []), "Returns:", "    Text and pictures."]
    )
    return call


def _kind(item: Mapping[str, Any]) -> Any:
    """The Python type of a JSON schema; a union with null is its other member."""
    if "anyOf" in item:
        return next(_kind(option) for option in item["anyOf"] if option.get("type") != "null")
    if "enum" in item:
        return Literal[tuple(item["enum"])]  # pyright: ignore[reportInvalidTypeArguments]
    if item.get("type") == "array":
        return list[_kind(item.get("items", {}))]
    return _TYPES.get(str(item.get("type")), str)


def _meaning(item: Mapping[str, Any]) -> str:
    """A parameter's description: the schema's own, else its title ("[x0, y0, x1, y1]" for a box)."""
    if "anyOf" in item and "description" not in item:
        return next(_meaning(option) for option in item["anyOf"] if option.get("type") != "null")
    return str(item.get("description") or item.get("title") or item.get("type", "value"))
