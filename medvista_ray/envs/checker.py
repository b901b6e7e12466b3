"""Holds a contributor's environment to the contract and reports every violation at once.

Two kinds: a `gymnasium.Env`, put through each of Gymnasium's own checks; and an async core (as MedEnv: made from client,
open_images and max_calls), played through scripted turns. Invariant: never raises for a fault of the environment.
Called by `medvista-ray check env`.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from medvista_ray.protocol import ToolCall, render_turn
from medvista_ray.registry import Registry
from medvista_ray.reports.trajectory import plain
from medvista_ray.tools.checker import Violation
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import AnswerKind, MedImage, Observation, Split, StepResult, Task

ENVIRONMENTS = Registry(
    "environment",
    {"MedVista-v0": "medvista_ray.envs.gym_env:MedVistaEnv", "MedEnv": "medvista_ray.envs.episode:MedEnv"},
)
INFO_KEYS = (
    "calls_used",
    "calls_left",
    "tool_name",
    "tool_ok",
    "error_code",
    "message",
    "latency_s",
    "arguments",
    "answer",
    "images",
)
MAX_CALLS = 3
_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_ZOOM = render_turn("look", ToolCall("zoom_in", {"bbox": [100, 100, 600, 700]}))
_MISTAKES = (
    ("a turn without tags", "no tags", "E1"),
    ("an unknown tool", render_turn("t", ToolCall("zom_in", {})), "E1"),
    ("an unknown key", render_turn("t", ToolCall("zoom_in", {"box": [0, 0, 9, 9]})), "E2"),
    ("a box beyond 1000", render_turn("t", ToolCall("zoom_in", {"bbox": [0, 0, 9, 2000]})), "E3"),
    ("a picture that is not there", render_turn("t", ToolCall("zoom_in", {"bbox": [0, 0, 9, 9], "image_index": 7})), "E4"),
)


def check_environment(made: Any) -> list[Violation]:
    """Every violation of an environment class or factory; none if it is empty."""
    import gymnasium as gym

    if not callable(made):
        return [Violation("callable", f"{made!r} is neither a class nor a factory")]
    rules = _gymnasium_rules if isinstance(made, type) and issubclass(made, gym.Env) else _core_rules
    try:
        return list(rules(made))
    except Exception as error:  # fault boundary: a contributor's code
        return [Violation("crash", f"{type(error).__name__}: {error}")]


def _gymnasium_rules(made: Callable[[], Any]) -> Iterator[Violation]:
    from gymnasium.utils import env_checker, passive_env_checker

    try:
        env = made()
    except Exception as error:  # fault boundary, as all below
        yield Violation("constructor", f"without arguments it raised {type(error).__name__}: {error}")
        return
    checks: list[Callable[[], Any]] = [
        lambda: passive_env_checker.check_action_space(env.action_space),
        lambda: passive_env_checker.check_observation_space(env.observation_space),
        *(
            lambda check=check: check(env)
            for check in (
                env_checker.check_reset_return_type,
                env_checker.check_reset_seed_determinism,
                env_checker.check_reset_options,
                passive_env_checker.env_reset_passive_checker,
            )
        ),
        lambda: (env.reset(seed=0), passive_env_checker.env_step_passive_checker(env, env.action_space.sample())),
        lambda: env_checker.check_step_determinism(env),
        lambda: env_checker.check_returned_data_not_reused(env),
    ]
    for check in checks:
        yield from _attempt(check)
    yield from _attempt(lambda: _same_seed(env))
    yield from _attempt(lambda: _play_random(env))
    yield from _attempt(env.close)


def _attempt(check: Callable[[], Any]) -> Iterator[Violation]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            check()
        except Exception as error:  # fault boundary: whatever a contributor's code or Gymnasium raises is a finding
            yield Violation("gymnasium", f"{type(error).__name__}: {error}")
    for warning in caught:
        yield Violation("gymnasium-warning", _ANSI.sub("", str(warning.message)))


def _same_seed(env: Any) -> None:
    """Gymnasium compares only environments that were made through its registry."""
    from gymnasium.utils.env_checker import data_equivalence

    if not data_equivalence(env.reset(seed=3)[0], env.reset(seed=3)[0]):
        raise ValueError("reset is not deterministic: the same seed gives another observation")


def _play_random(env: Any, num_steps: int = 50) -> None:
    env.reset(seed=1)
    for _ in range(num_steps):
        _, reward, terminated, truncated, info = env.step(env.action_space.sample())
        if not math.isfinite(float(reward)):
            raise ValueError(f"reward = {reward}: a finite number needed")
        json.dumps(plain(info), allow_nan=False)
        if terminated or truncated:
            return
    raise ValueError(f"an episode of random turns does not end within {num_steps} steps: it has no budget")


def _core_rules(made: Callable[..., Any]) -> Iterator[Violation]:
    client = LocalToolClient(["zoom_in"])
    gold = f"gold-{secrets.token_hex(8)}"
    picture = MedImage(pixels=np.arange(4800, dtype=np.int16).reshape(60, 80), modality="CT")
    task = Task(
        id="check", source="check", family="check", split=Split.TRAIN, subject="s", modality="CT",
        question="Which organ is bright?", answer=gold, kind=AnswerKind.TEXT, aliases=(f"{gold} too",),
    )  # fmt: skip

    def play(turns: Sequence[str]) -> tuple[Observation, list[StepResult]]:
        async def run() -> tuple[Observation, list[StepResult]]:
            env = made(client, lambda _: [picture], MAX_CALLS)
            return await env.reset(task), [await env.step(text) for text in turns]

        return asyncio.run(run())

    try:
        for rule in (_check_reset, _check_call, _check_mistakes, _check_answer, _check_budget, _check_after_end):
            try:
                for message in rule(play):
                    yield Violation(rule.__name__.removeprefix("_check_"), message)
            except Exception as error:  # fault boundary: the next rule may still find something
                yield Violation(rule.__name__.removeprefix("_check_"), f"raised {type(error).__name__}: {error}")
        shown = repr(play(["", "x", _ZOOM]))
        if gold in shown or gold in repr(play([render_turn("t", "wrong")])):
            yield Violation("gold", "the gold answer stands in an observation or an info")
    finally:
        client.close()


Play = Callable[[Sequence[str]], tuple[Observation, list[StepResult]]]


def _check_reset(play: Play) -> Iterator[str]:
    observation, _ = play([])
    if "Which organ is bright?" not in observation.text:
        yield "reset does not show the question"
    if len(observation.images) != 1:
        yield f"reset shows {len(observation.images)} pictures; the task has 1"


def _check_call(play: Play) -> Iterator[str]:
    (step,) = play([_ZOOM])[1]
    if missing := [key for key in INFO_KEYS if key not in step.info]:
        yield f"info has no {', '.join(missing)}"
    if step.terminated or step.truncated:
        yield "a valid call ends the episode"
    if not step.observation.text or len(step.observation.images) != 1:
        yield "the tool's text or picture does not reach the observation"
    images = step.info.get("images") or [{}]
    if (images[0].get("index"), images[0].get("parent")) != (1, 0):
        yield f"lineage of the tool's picture = {images[0]}: index 1, parent 0 needed"
    json.dumps(plain(dict(step.info)), allow_nan=False)


def _check_mistakes(play: Play) -> Iterator[str]:
    for what, text, code in _MISTAKES:
        (step,) = play([text])[1]
        if step.info.get("error_code") != code:
            yield f"{what} has error_code {step.info.get('error_code')}, not {code}"
        if not step.observation.text:
            yield f"{what} is not told what was wrong"
        if step.terminated or step.truncated:
            yield f"{what} ends the episode"


def _check_answer(play: Play) -> Iterator[str]:
    (step,) = play([render_turn("t", "spleen")])[1]
    if not step.terminated or step.truncated:
        yield "an answer does not terminate the episode"
    if step.info.get("answer") != "spleen":
        yield f"info['answer'] = {step.info.get('answer')!r} after the answer 'spleen'"


def _check_budget(play: Play) -> Iterator[str]:
    steps = play([_ZOOM] * (MAX_CALLS + 1))[1]
    if [step.truncated for step in steps] != [False] * MAX_CALLS + [True]:
        yield f"with {MAX_CALLS} calls allowed, the call after them must truncate, and no other"
    (*_, answered) = play([*[_ZOOM] * MAX_CALLS, render_turn("t", "spleen")])[1]
    if not answered.terminated:
        yield "an answer after the last call is not taken"


def _check_after_end(play: Play) -> Iterator[str]:
    try:
        play([render_turn("t", "spleen")] * 2)
    except Exception:  # any refusal will do
        return
    yield "a step after the end is accepted; it must raise"
