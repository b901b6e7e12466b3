"""The engine's benchmark for a GPU, on a processor with a small shape: the same functions from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gpu import engine

pytestmark = pytest.mark.vllm


def test_all_requests_sample_and_an_update_is_loaded_in_flight(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    options = ["--device", "cpu", "--dtype", "float32", "--shape", "small-internvl", "--json", str(out), "--work", str(tmp_path)]
    options += ["--num-requests", "8", "--group-size", "4", "--num-text", "20", "--num-sampled", "32"]
    assert engine.main([*options, "--max-model-len", "256", "--kv-cache-mib", "64"]) == 0
    figures = json.loads(out.read_text())
    assert figures["sampled_per_s"] > 0
    assert figures["sampled_per_s_with_update"] > 0
    assert 0 < figures["update_s"] <= figures["pause_s"]
    assert figures["num_bytes"] > 100_000
