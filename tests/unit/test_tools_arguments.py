"""Arguments, contexts, signatures and the in-process client: a policy's mistake is always an outcome."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, ClassVar

import numpy as np
import pytest

from medvista_ray.errors import ConfigError, ToolArgumentError, UnknownNameError
from medvista_ray.tools.base import Family, Tool, ToolArgs, ToolContext
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.tools.client import LocalToolClient
from medvista_ray.types import ErrorCode, Mask, MedImage, ToolOutcome, ToolResult


class SlowArgs(ToolArgs):
    """Arguments of SlowTool."""

    seconds: float
    ill_formed: bool = False


class SlowTool(Tool):
    """Sleeps; raises on a negative time."""

    name: ClassVar[str] = "slow"
    family: ClassVar[Family] = "parse"
    description: ClassVar[str] = "sleep."
    Args = SlowArgs
    num_parallel: ClassVar[int] = 4

    def run(self, args: SlowArgs, context: ToolContext) -> ToolResult:
        """Sleep."""
        time.sleep(args.seconds)
        masks = (Mask(0, np.zeros((1, 1), bool)),) if args.ill_formed else ()
        return ToolResult(text="slept", masks=masks)


def picture(height: int = 20, width: int = 30) -> MedImage:
    return MedImage(pixels=np.arange(height * width, dtype=np.int16).reshape(height, width), modality="CT", unit="HU")


def call(name: str, arguments: Any, context: ToolContext | None = None, **options: Any) -> ToolOutcome:
    client = LocalToolClient(["zoom_in", "measure", f"{__name__}:SlowTool"], **options)
    try:
        return asyncio.run(client.call(name, arguments, context or ToolContext({0: picture()}, {})))
    finally:
        client.close()


@pytest.mark.parametrize(
    ("name", "arguments", "code", "words"),
    [
        ("zoom", {}, ErrorCode.E1, "did you mean 'zoom_in'"),
        (
            "zoom_in",
            {"box": [0, 0, 10, 10]},
            ErrorCode.E2,
            "unknown key 'box' (value [0, 0, 10, 10]); did you mean 'bbox'",
        ),
        ("zoom_in", {}, ErrorCode.E2, "missing key 'bbox'"),
        ("measure", {}, ErrorCode.E2, "exactly one of bbox, mask_index; found none"),
        ("measure", {"bbox": [0, 0, 9, 9], "mask_index": 0}, ErrorCode.E2, "found bbox and mask_index"),
        (
            "zoom_in",
            {"bbox": [0, 0, 1200, 10]},
            ErrorCode.E3,
            "bbox[2] = 1200: input should be less than or equal to 1000",
        ),
        ("zoom_in", {"bbox": ["0", 0, 10, 10]}, ErrorCode.E3, "bbox[0] = '0'"),
        ("zoom_in", {"bbox": [0, True, 10, 10]}, ErrorCode.E3, "bbox[1] = True"),
        ("zoom_in", {"bbox": [0, 0, 10]}, ErrorCode.E3, "bbox = [0, 0, 10]: too few items"),
        ("zoom_in", {"bbox": [0, 0, 10, 10, 10]}, ErrorCode.E3, "bbox = [0, 0, 10, 10, 10]: tuple"),
        ("zoom_in", {"bbox": [10, 0, 10, 10]}, ErrorCode.E3, "x0 < x1 and y0 < y1"),
        ("zoom_in", {"bbox": "all"}, ErrorCode.E3, "bbox = 'all'"),
        ("zoom_in", [1, 2], ErrorCode.E3, "an object of key and value"),
        ("zoom_in", {"bbox": [0, 0, 10, 10], "image_index": 3}, ErrorCode.E4, "there is no image 3; images: 0"),
        ("measure", {"mask_index": 0}, ErrorCode.E4, "there is no mask 0; masks: none"),
        ("slow", {"seconds": -1.0}, ErrorCode.E5, "slow failed: ValueError"),
        ("slow", {"seconds": 0.0, "ill_formed": True}, ErrorCode.E5, "a mask that fits no image"),
    ],
)
def test_a_mistake_is_an_outcome_with_its_code_and_the_words_to_mend_it(
    name: str, arguments: Any, code: ErrorCode, words: str
) -> None:
    outcome = call(name, arguments)
    assert (outcome.result, outcome.error) == (None, code)
    assert words in outcome.message


def test_a_call_that_exceeds_its_time_is_abandoned_and_told_of() -> None:
    start = time.perf_counter()
    outcome = call("slow", {"seconds": 0.6}, timeout_s=0.1)
    assert outcome.error == ErrorCode.E5
    assert "longer than 0.1 s" in outcome.message
    assert time.perf_counter() - start < 0.5


def test_calls_run_at_the_same_time() -> None:
    async def two() -> float:
        client = LocalToolClient([f"{__name__}:SlowTool"])
        start = time.perf_counter()
        await asyncio.gather(*(client.call("slow", {"seconds": 0.2}, ToolContext({}, {})) for _ in range(4)))
        assert client.stats()["slow"]["num_calls"] == 4
        return time.perf_counter() - start

    assert asyncio.run(two()) < 0.5


def test_waiting_for_others_is_not_held_against_a_call() -> None:
    async def many() -> list[ToolOutcome]:
        client = LocalToolClient([f"{__name__}:SlowTool"], timeout_s=0.25)
        calls = (client.call("slow", {"seconds": 0.1}, ToolContext({}, {})) for _ in range(16))
        return await asyncio.gather(*calls)

    assert all(outcome.error is None for outcome in asyncio.run(many()))


def test_a_tool_sees_only_what_its_arguments_name_and_a_mask_brings_its_picture() -> None:
    images = {i: picture() for i in range(4)}
    context = ToolContext(images, {0: Mask(2, np.ones((20, 30), bool)), 1: Mask(3, np.ones((20, 30), bool))})
    measure = load_tools(["measure"])[0]
    needed = context.needed_by(measure.Args.model_validate({"mask_index": 0}))
    assert set(needed.images) == {0, 2}
    assert set(needed.masks) == {0}
    assert (needed.num_images, needed.num_masks) == (4, 2)
    with pytest.raises(ToolArgumentError, match="masks: 0, 1"):
        context.needed_by(measure.Args.model_validate({"mask_index": 7}))


def test_signatures_are_short_and_made_from_the_schemas() -> None:
    signatures = {spec.name: spec.signature() for spec in load_tools(TOOLS.names())}
    assert signatures["segment_medical"] == (
        "segment_medical(image_index: int = 0, bbox: [x0, y0, x1, y1]): outline the structure in a box."
    )
    assert "mask_index?: int" in signatures["measure"]
    assert all(len(text) < 200 for text in signatures.values())


def test_names_that_do_not_load_are_told_with_the_nearest_one() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'measure'"):
        load_tools(["mesure"])
    with pytest.raises(ConfigError, match="is not a subclass"):
        load_tools(["medvista_ray.types:MedImage"])
    with pytest.raises(ConfigError, match="given twice"):
        load_tools(["zoom_in", "zoom_in"])


def test_naming_the_tools_starts_no_thread() -> None:
    before = threading.active_count()
    load_tools(TOOLS.names())
    assert threading.active_count() == before
