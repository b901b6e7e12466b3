"""Generated arguments and odd pictures: every call is an outcome in bounded time, never an exception, never ill-formed.

The inputs are those of `benchmarks/fuzz.py`, which generates 100,000 for each tool, those that need weights too; here it is
few (MEDVISTA_FUZZ_EXAMPLES). `execute` turns a tool's bug into E5, so E5 is what must not appear.
"""

from __future__ import annotations

import json
import os
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from benchmarks import fuzz
from benchmarks.fuzz_inputs import arguments, batches, context, huge, picture_calls, pictures, turns
from medvista_ray.protocol import parse
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.tools.execution import check, execute
from medvista_ray.types import ErrorCode, ToolOutcome, ToolResult

NAMES = ("zoom_in", "super_resolve", "enhance", "compare_regions", "ground", "segment_prompt", "segment_text", "measure")
NUM_EXAMPLES = int(os.environ.get("MEDVISTA_FUZZ_EXAMPLES", "60"))
BATCH = 10
LIMIT_S = 10.0

bounded = settings(
    max_examples=NUM_EXAMPLES // BATCH,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@cache
def tool(name: str) -> Tool:
    made = load_tools([name])[0]()
    made.setup()
    return made


@pytest.mark.parametrize("name", TOOLS.names())
def test_any_arguments_of_any_tool_are_taken_or_refused_in_words(name: str) -> None:
    spec = load_tools([name])[0]

    @bounded
    @given(batches(arguments(spec), BATCH))
    def one(batch: tuple[Any, ...]) -> None:
        start = time.perf_counter()
        for drawn in batch:
            checked = check(spec, drawn, context())
            if isinstance(checked, ToolOutcome):
                assert checked.error in (ErrorCode.E2, ErrorCode.E3, ErrorCode.E4), drawn
                assert 0 < len(checked.message) < 500
            else:
                assert isinstance(checked[0], spec.Args)
        assert time.perf_counter() - start < LIMIT_S

    one()


@pytest.mark.parametrize("name", NAMES)
def test_any_arguments_on_any_picture_are_an_outcome(name: str) -> None:
    @bounded
    @given(batches(arguments(load_tools([name])[0]), BATCH))
    def one(batch: tuple[Any, ...]) -> None:
        for drawn in batch:
            start = time.perf_counter()
            outcome = execute(tool(name), drawn, context())
            assert time.perf_counter() - start < LIMIT_S
            assert fuzz.wrong_outcome(outcome) == "", (drawn, outcome.message)

    one()


@bounded
@given(batches(turns, BATCH))
def test_any_turn_is_read_or_refused_in_words(batch: tuple[str, ...]) -> None:
    assert [(text, words) for text in batch if (words := fuzz.wrong_turn(parse(text)))] == []


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", pictures())
def test_each_odd_picture_goes_through_each_tool(name: str, index: int) -> None:
    alone = ToolContext({0: pictures()[index]}, {})
    for given_arguments in picture_calls(load_tools([name])[0]):
        outcome = execute(tool(name), given_arguments, alone)
        assert fuzz.wrong_outcome(outcome) == "", (given_arguments, outcome.message)
        assert outcome.error in (None, ErrorCode.E4), (given_arguments, outcome.message)


def test_what_is_no_number_in_a_picture_does_not_spread() -> None:
    broken = ToolContext({0: pictures()[11]}, {})
    values = broken.images[0].pixels
    whole = execute(tool("measure"), {"bbox": [0, 0, 1000, 1000]}, broken).result
    assert whole is not None
    assert whole.data["mean"] == pytest.approx(values[np.isfinite(values)].mean())
    fine = execute(tool("super_resolve"), {}, broken).result
    assert fine is not None
    assert np.isfinite(fine.images[0].pixels).all()
    assert np.ptp(fine.images[0].display()) > 200
    nothing = execute(tool("measure"), {"bbox": [0, 0, 1000, 1000]}, ToolContext({0: pictures()[12]}, {}))
    assert (nothing.error, nothing.message) == (ErrorCode.E4, "no pixel of the region has a value")


def test_a_huge_picture_takes_bounded_time_and_gives_bounded_pictures() -> None:
    large = ToolContext({0: huge()}, {})
    for name, given_arguments in (
        ("enhance", {"op": "denoise", "params": {"radius": 4}}),
        ("ground", {"phrase": "bright structure", "overlay": True}),
        ("segment_prompt", {"bbox": [100, 100, 900, 900], "overlay": True}),
        ("compare_regions", {"items": [{}, {}]}),
    ):
        start = time.perf_counter()
        outcome = execute(tool(name), given_arguments, large)
        assert outcome.result is not None, outcome.message
        assert time.perf_counter() - start < LIMIT_S
        assert all(max(image.size) <= 1024 for image in outcome.result.images)


def test_fuzzing_counts_every_input_and_passes(tmp_path: Path) -> None:
    arguments = ["--json", str(tmp_path / "f.json"), "--num-inputs", "100", "--num-files", "100", "--run-s", "0"]
    assert fuzz.main([*arguments, "--only", "parser", "measure", "files", "pictures.measure"]) == 0
    told = json.loads((tmp_path / "f.json").read_text())
    assert told["summary"]["num_faults"] == 0
    assert {name: target["num_inputs"] for name, target in told["targets"].items()} == {
        "parser": 100, "measure": 100, "pictures.measure": 28, "files": 100,
    }  # fmt: skip
    assert all(sum(target["outcomes"].values()) == target["num_inputs"] for target in told["targets"].values())


def test_fuzzing_finds_what_it_looks_for() -> None:
    tally = fuzz.Tally(limit_s=0.0)
    for outcome in (
        ToolOutcome(result=None, error=ErrorCode.E5, message="failed", latency_s=0.0),
        ToolOutcome(result=None, error=ErrorCode.E4, message="", latency_s=0.0),
        ToolOutcome(result=ToolResult(text="x", data={"mean": float("nan")}), latency_s=0.0),
    ):
        tally.add(0, lambda told=outcome: str(told.error), lambda told=outcome: fuzz.wrong_outcome(told))
    tally.add(0, lambda: str(1 // 0), lambda: "")
    assert tally.counts == {"slow": 4, "E5": 1, "ill_formed": 2, "exception": 1}
    assert "ZeroDivisionError" in tally.faults[-2]
