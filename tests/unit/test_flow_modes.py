"""The three modes of the loop as configuration values: which staleness bound goes with which."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from medvista_ray.config import FlowConfig, load_config
from medvista_ray.errors import ConfigError
from medvista_ray.flow.loop import LoopSettings


@pytest.mark.parametrize(
    ("given", "mode", "eta"),
    [
        ({}, "async", 1),
        ({"eta": 0}, "sync", 0),
        ({"eta": 3}, "async", 3),
        ({"mode": "sync"}, "sync", 0),
        ({"mode": "one_step_off"}, "one_step_off", 1),
        ({"mode": "async", "eta": 2}, "async", 2),
    ],
)
def test_mode_or_eta_alone_says_enough(given: dict[str, Any], mode: str, eta: int) -> None:
    flow = FlowConfig.model_validate(given)
    assert (flow.mode, flow.eta) == (mode, eta)


@pytest.mark.parametrize(("mode", "eta", "rule"), [("sync", 1, "= 0"), ("one_step_off", 2, "= 1"), ("async", 0, ">= 1")])
def test_a_mode_that_contradicts_eta_is_refused_with_the_rule(mode: str, eta: int, rule: str) -> None:
    with pytest.raises(ConfigError, match=rf"flow = .*mode = '{mode}' goes with eta {rule}, not with eta = {eta}"):
        load_config(None, [f"flow.mode={mode}", f"flow.eta={eta}"])


def test_the_loop_goes_by_batch_in_all_modes_but_async() -> None:
    by_batch = {
        mode: LoopSettings.of(load_config(None, [f"flow.mode={mode}"]), Path("run")).by_batch
        for mode in ("sync", "one_step_off", "async")
    }
    assert by_batch == {"sync": True, "one_step_off": True, "async": False}
