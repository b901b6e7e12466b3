"""The grammar: what is a turn, what is E1 and why, and that nothing makes the parser raise."""

from __future__ import annotations

import json
import random

import pytest

from medvista_ray.protocol import TAGS, ToolCall, parse, render_call, render_turn, system_prompt
from medvista_ray.protocol.parser import MAX_TURN_CHARACTERS
from medvista_ray.protocol.prompt import PromptStyle
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.types import ErrorCode

CALL = render_call("zoom_in", {"image_index": 0, "bbox": [1, 2, 300, 400]})
ANSWER = "<answer>yes</answer>"
THINK = "<think>look closer</think>"


def test_a_call_is_read_back_as_it_was_written() -> None:
    turn = parse(THINK + CALL)
    assert turn.error is None
    assert turn.think == "look closer"
    assert turn.call == ToolCall("zoom_in", {"image_index": 0, "bbox": [1, 2, 300, 400]})
    assert turn.answer is None


def test_an_answer_is_read_with_white_space_around_every_part() -> None:
    turn = parse("\n <think>\nhm\n</think>\n\n<answer> 12 mm </answer>\n")
    assert (turn.error, turn.think, turn.answer, turn.call) == (None, "hm", "12 mm", None)


@pytest.mark.parametrize(
    "action",
    [
        ToolCall("f", {"query": 'a "quoted" <b> \u00e9\u4e2d', "k": 3}),
        ToolCall("f", {"query": "</tool_call><answer>"}),
        "left lung",
    ],
)
def test_whatever_is_rendered_parses_back(action: ToolCall | str) -> None:
    turn = parse(render_turn("why", action))
    assert (turn.call or turn.answer) == action


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        ("  \n", "empty"),
        ("yes", "must start with <think>"),
        (ANSWER, "must start with <think>"),
        ("so: " + THINK + ANSWER, "text before <think>"),
        ("<think>never closed", "<think> is not closed"),
        ("<think>a<think>b</think></think>" + ANSWER, "<think> inside <think>"),
        ("<think>maybe " + CALL + "</think>" + ANSWER, "<tool_call> inside <think>"),
        (THINK, "no <tool_call> and no <answer>"),
        (THINK + "text" + ANSWER, "text after </think>"),
        (THINK + "<answer>ye", "<answer> is not closed"),
        (THINK + CALL.removesuffix("</tool_call>"), "<tool_call> is not closed"),
        (THINK + "<answer>a</tool_call>", "</tool_call> inside <answer>"),
        (THINK + CALL + CALL, "one call or one answer per turn"),
        (THINK + CALL + ANSWER, "one call or one answer per turn"),
        (THINK + ANSWER + CALL, "one call or one answer per turn"),
        (THINK + ANSWER + THINK, "<think> after </answer>"),
        (THINK + THINK + ANSWER, "<think> after </think>"),
        (THINK + ANSWER + " and more", "text after </answer>"),
        (THINK + CALL + ".", "text after </tool_call>"),
        (THINK + "<answer> </answer>", "the answer is empty"),
        (THINK + "<ANSWER>yes</ANSWER>", "no <tool_call> and no <answer>"),
        ("x" * (MAX_TURN_CHARACTERS + 1), "longer than"),
    ],
)
def test_a_broken_turn_is_e1_and_says_why(text: str, reason: str) -> None:
    turn = parse(text)
    assert turn.error is ErrorCode.E1
    assert reason in turn.message
    assert turn.call is None
    assert turn.answer is None


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("zoom_in", "not JSON"),
        ("{'name': 'zoom_in', 'arguments': {}}", "not JSON"),
        ('{"name": "zoom_in", "arguments": {}', "not JSON"),
        ('{"name": "zoom_in", "arguments": {}} {}', "not JSON"),
        ("[1]", "must be"),
        ('{"arguments": {}}', 'no "name"'),
        ('{"name": "zoom_in"}', 'no "arguments"'),
        ('{"name": "zoom_in", "arguments": {}, "id": 1}', "keys other than"),
        ('{"name": 3, "arguments": {}}', '"name" must be'),
        ('{"name": "", "arguments": {}}', '"name" must be'),
        ('{"name": "a", "arguments": [1]}', '"arguments" must be'),
        ('{"name": "a", "name": "b", "arguments": {}}', "'name' occurs twice"),
        ('{"name": "a", "arguments": {"k": 1, "k": 2}}', "'k' occurs twice"),
        ('{"name": "a", "arguments": {"k": NaN}}', "NaN"),
        ('{"name": "a", "arguments": {"k": 1e999}}', "too large"),
        ('{"name": "a", "arguments": {"k": ' + "9" * 5000 + "}}", "too large"),
        ('{"name": "a", "arguments": {"k": "\\ud800"}}', "surrogate"),
        ('{"name": "a", "arguments": {"k": ' + "[" * 9000 + "]" * 9000 + "}}", "nested too deeply"),
    ],
)
def test_a_broken_call_is_e1_and_says_why(body: str, reason: str) -> None:
    turn = parse(f"{THINK}<tool_call>{body}</tool_call>")
    assert turn.error is ErrorCode.E1
    assert reason in turn.message


def test_no_random_text_makes_the_parser_raise_or_return_two_things() -> None:
    rng = random.Random(0)
    pieces = [*TAGS, *'{}[]",:0\\', "name", "arguments", '{"name": "a", "arguments": {}}', " ", "\ud800", "\u0000", "x"]
    for _ in range(100_000):
        turn = parse("".join(rng.choices(pieces, k=rng.randrange(12))))
        assert [turn.call is not None, turn.answer is not None, turn.error is not None].count(True) == 1
        assert bool(turn.message) == (turn.error is not None)


@pytest.mark.parametrize("turn", [THINK + CALL, THINK + ANSWER])
def test_every_truncation_of_a_valid_turn_is_e1(turn: str) -> None:
    assert parse(turn).error is None
    assert all(parse(turn[:end]).error is ErrorCode.E1 for end in range(len(turn)))


def test_a_random_edit_of_a_call_never_changes_the_arguments_unseen() -> None:
    rng = random.Random(1)
    for _ in range(3000):
        body = list(json.dumps({"name": "a", "arguments": {"k": [1, 2]}}))
        body[rng.randrange(len(body))] = rng.choice('{}[]":,x1 ')
        text = "".join(body)
        call = parse(f"{THINK}<tool_call>{text}</tool_call>").call
        assert call is None or {"name": call.name, "arguments": call.arguments} == json.loads(text)


def test_the_system_prompt_shows_grammar_budget_and_every_tool_in_a_few_lines() -> None:
    specs = load_tools(["zoom_in", "measure"])
    prompt = system_prompt(specs, 6)
    assert all(spec.signature() in prompt for spec in specs)
    assert "<think>" in prompt
    assert "<tool_call>" in prompt
    assert "<answer>" in prompt
    assert "0..1000" in prompt
    assert "At most 6 calls" in prompt
    assert len(prompt.splitlines()) <= 3 + len(specs)


@pytest.mark.parametrize(
    ("style", "share", "lines"),
    [
        (
            "names",
            1 / 2,
            [
                "measure(bbox?, mask_index?, image_index?, reference_bbox?, reference_mask_index?)",
                "segment_medical(image_index?, bbox)",
            ],
        ),
        ("required", 1 / 3, ["measure(...)", "zoom_in(bbox, ...)", "compare_regions(items)"]),
    ],
)
def test_a_short_prompt_names_every_tool_in_a_part_of_the_room(style: PromptStyle, share: float, lines: list[str]) -> None:
    specs = load_tools(TOOLS.names())
    brief, full = system_prompt(specs, 6, style), system_prompt(specs, 6)
    assert len(brief) < len(full) * share
    assert set(lines) <= set(brief.splitlines())
    assert all(f"\n{spec.name}(" in brief for spec in specs)


def test_without_tools_the_system_prompt_speaks_of_none() -> None:
    prompt = system_prompt([], 6)
    assert "<answer>" in prompt
    assert "tool" not in prompt
