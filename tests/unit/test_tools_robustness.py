"""Generated arguments and odd pictures: every call is an outcome in bounded time, never an exception, never ill-formed.

`execute` turns a tool's bug into E5, so E5 is what must not appear. MEDVISTA_FUZZ_EXAMPLES sets the number of inputs.
"""

from __future__ import annotations

import math
import os
import time
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.tools.execution import check, execute
from medvista_ray.tools.localize.classical import FINDERS
from medvista_ray.tools.refine.enhance import Operation
from medvista_ray.types import ErrorCode, Mask, MedImage, ToolOutcome, VolumeImage

NAMES = ("zoom_in", "super_resolve", "enhance", "compare_regions", "ground", "segment_prompt", "segment_text", "measure")
NUM_EXAMPLES = int(os.environ.get("MEDVISTA_FUZZ_EXAMPLES", "60"))
LIMIT_S = 10.0

bounded = settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@cache
def tool(name: str) -> Tool:
    made = load_tools([name])[0]()
    made.setup()
    return made


@cache
def pictures() -> dict[int, MedImage]:
    """One of each odd kind."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 65535, (40, 30), dtype=np.uint16)
    kinds = [
        MedImage(noise, "X-ray"),
        MedImage(rng.normal(0, 300, (64, 48)).astype(np.int16), "CT", (0.7, 0.7), "HU", (-160.0, 240.0)),
        MedImage(rng.integers(0, 255, (33, 65, 3), dtype=np.uint8), "microscopy"),
        MedImage(np.array([[7]], np.int16), "CT", (1.0, 1.0), "HU"),
        MedImage(np.array([[[1, 2, 3]]], np.uint8), "unknown"),
        MedImage(np.zeros((50, 50), np.float32), "MRI", unit="signal"),
        MedImage(np.full((3, 400), 1e30), "MRI", (100.0, 1e-3), "signal"),
        MedImage(rng.integers(0, 2, (400, 2)).astype(bool), "unknown"),
        MedImage(np.arange(900, dtype=np.int64).reshape(30, 30) - 2**31, "PET", (0.0, 0.0), window=(5.0, 5.0)),
        VolumeImage.of(rng.normal(0, 300, (5, 24, 20)).astype(np.int16), "CT", (50.0, 0.1, 0.1), unit="HU"),
        VolumeImage.of(rng.integers(0, 255, (3, 20, 20, 3), dtype=np.uint8), "ultrasound"),
    ]
    return dict(enumerate(kinds))


@cache
def context() -> ToolContext:
    images = pictures()
    return ToolContext(images, {0: Mask(1, images[1].pixels > 0), 1: Mask(5, np.zeros((50, 50), bool))})


odd = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just(math.nan), st.just([]), st.just({})
)
index = st.integers(0, 11)
edges = st.tuples(st.integers(0, 999), st.integers(1, 1000)).map(lambda pair: (min(pair), max(pair[1], min(pair) + 1)))
good_box = st.tuples(edges, edges).map(lambda both: [both[0][0], both[1][0], both[0][1], both[1][1]])
box = st.one_of(good_box, st.lists(odd, max_size=5), st.lists(st.integers(-5, 1005), min_size=4, max_size=4), odd)
phrase = st.one_of(st.sampled_from([*FINDERS, "lungs", "the brightest spot", "spleen"]), st.text(max_size=30))
point = st.lists(st.integers(0, 1000), min_size=2, max_size=2)
params = st.fixed_dictionaries(
    {},
    optional={
        "low": st.floats(),
        "high": st.floats(),
        "gamma": st.floats(0.05, 11),
        "clip": st.floats(0, 1.1),
        "radius": st.integers(0, 5),
        "amount": st.floats(0, 6),
        "angle": st.sampled_from([90, 180, 270, 45]),
        "axis": st.sampled_from(["horizontal", "vertical", "z"]),
        "plane": st.sampled_from(["axial", "coronal", "sagittal", "oblique"]),
    },
)
values: dict[str, st.SearchStrategy[Any]] = {
    "image_index": index,
    "bbox": box,
    "scale": st.floats(0.5, 17.0),
    "factor": st.sampled_from([2, 4, 3, 2.0]),
    "slice_index": st.integers(-1, 30),
    "window": st.sampled_from(["lung", "mediastinum", "bone", "brain", "liver"]),
    "op": st.sampled_from([*Operation.__args__, "melt"]),
    "params": st.one_of(params, odd),
    "items": st.lists(
        st.fixed_dictionaries({}, optional={"image_index": index, "bbox": good_box, "label": st.text(max_size=22)}), max_size=5
    ),
    "phrase": phrase,
    "target": phrase,
    "box_threshold": st.floats(-0.1, 1.1),
    "text_threshold": st.floats(-0.1, 1.1),
    "overlay": st.booleans(),
    "points": st.one_of(st.lists(point, max_size=4), odd),
    "labels": st.one_of(st.lists(st.integers(0, 1), max_size=4), odd),
    "max_masks": st.integers(0, 21),
    "mask_index": st.integers(0, 2),
    "reference_bbox": box,
    "reference_mask_index": st.integers(0, 2),
    "query": st.text(max_size=320),
    "entity": st.text(max_size=220),
    "k": st.integers(-1, 12),
    "detail": st.booleans(),
    "relation": st.one_of(st.sampled_from(["definition", "parents", "cause"]), odd),
    "region": box,
    "min_confidence": st.floats(-0.1, 1.1),
    "candidates": st.one_of(st.lists(st.text(max_size=20), max_size=22), odd),
    "preset": st.sampled_from(["modality", "plane", "organ", "stain", "colour"]),
}


def arguments(name: str) -> st.SearchStrategy[dict[str, Any]]:
    """Mostly the tool's own keys with plausible values, at times a wrong key or value."""
    spec = load_tools([name])[0].Args.model_fields
    required = {key: values[key] for key, field in spec.items() if field.is_required()}
    optional = {key: values[key] for key, field in spec.items() if not field.is_required()}
    plausible = st.fixed_dictionaries(required, optional=optional)
    return st.one_of(plausible, plausible, st.dictionaries(st.sampled_from([*spec, "box"]), odd, max_size=4))


@pytest.mark.parametrize("name", TOOLS.names())
def test_any_arguments_of_any_tool_are_taken_or_refused_in_words(name: str) -> None:
    spec = load_tools([name])[0]

    @bounded
    @given(st.one_of(arguments(name), odd))
    def one(drawn: Any) -> None:
        start = time.perf_counter()
        checked = check(spec, drawn, context())
        assert time.perf_counter() - start < LIMIT_S
        if isinstance(checked, ToolOutcome):
            assert checked.error in (ErrorCode.E2, ErrorCode.E3, ErrorCode.E4)
            assert 0 < len(checked.message) < 500
        else:
            assert isinstance(checked[0], spec.Args)

    one()


@pytest.mark.parametrize("name", NAMES)
def test_any_arguments_on_any_picture_are_an_outcome(name: str) -> None:
    @bounded
    @given(arguments(name))
    def one(drawn: dict[str, Any]) -> None:
        start = time.perf_counter()
        outcome = execute(tool(name), drawn, context())
        assert time.perf_counter() - start < LIMIT_S
        assert outcome.error != ErrorCode.E5, (drawn, outcome.message)
        assert (outcome.result is None) == (outcome.error is not None)
        for image in outcome.result.images if outcome.result else ():
            assert 0 < min(image.size) <= max(image.size) <= 2048
            assert image.display().dtype == np.uint8

    one()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("index", range(11))
def test_each_odd_picture_goes_through_each_tool(name: str, index: int) -> None:
    whole = [0, 0, 1000, 1000]
    calls: dict[str, list[dict[str, Any]]] = {
        "zoom_in": [{"bbox": whole}],
        "super_resolve": [{}, {"factor": 4}],
        "enhance": [{"op": op} for op in Operation.__args__] + [{"params": {"plane": "coronal"}}],
        "compare_regions": [{"items": [{"image_index": index}, {"image_index": 0}]}],
        "ground": [{"phrase": phrase, "box_threshold": 0.0, "overlay": True} for phrase in FINDERS],
        "segment_prompt": [{"bbox": whole}, {"points": [[0, 0], [1000, 1000]], "labels": [1, 0]}, {"points": [[500, 500]]}],
        "segment_text": [{"target": phrase, "overlay": True} for phrase in FINDERS],
        "measure": [{"bbox": whole}],
    }
    for given_arguments in calls[name]:
        where = {} if name == "compare_regions" else {"image_index": index}
        outcome = execute(tool(name), where | given_arguments, context())
        assert outcome.error in (None, ErrorCode.E4), (given_arguments, outcome.message)


def test_a_huge_picture_takes_bounded_time_and_gives_bounded_pictures() -> None:
    rng = np.random.default_rng(0)
    huge = MedImage(np.kron(rng.integers(0, 200, (30, 40), dtype=np.uint8), np.ones((100, 100), np.uint8)), "microscopy")
    context = ToolContext({0: huge}, {})
    for name, arguments in (
        ("enhance", {"op": "denoise", "params": {"radius": 4}}),
        ("ground", {"phrase": "bright structure", "overlay": True}),
        ("segment_prompt", {"bbox": [100, 100, 900, 900], "overlay": True}),
        ("compare_regions", {"items": [{}, {}]}),
    ):
        start = time.perf_counter()
        outcome = execute(tool(name), arguments, context)
        assert outcome.result is not None, outcome.message
        assert time.perf_counter() - start < LIMIT_S
        assert all(max(image.size) <= 1024 for image in outcome.result.images)
