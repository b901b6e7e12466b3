"""A cluster of three nodes loses one in mid-run: the rest trains on, the lost generators come back on a node that joins."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.chaos.three_nodes import BATCH, ETA


def test_a_run_survives_the_loss_of_a_node_and_uses_one_that_joins(root: Path, tmp_path: Path) -> None:
    told = tmp_path / "told.json"
    program = [sys.executable, "-m", "tests.chaos.three_nodes", str(told)]
    done = subprocess.run(program, cwd=root, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]
    seen = json.loads(told.read_text())
    summary, records = seen["summary"], seen["records"]

    assert seen["num_homes"] == 2, "labels place the generators on the two nodes that carry them"
    assert seen["trunk_apart"], "learner and coordinator are on the third"
    assert len(seen["lost"]) == 2
    assert set(seen["doing_without"].values()) == {"recovering"}
    assert seen["new_homes"] == 1, "both came back on the node that joined"

    assert summary["num_generator_faults"] >= 2
    assert len(seen["trained"]) == len(set(seen["trained"])) == summary["step"] * BATCH, "each group once"
    assert summary["counts"]["num_failed"] == 0
    assert [record["step"] for record in records] == list(range(1, summary["step"] + 1))
    for record in records:
        done_groups = record["num_trained"] + record["num_filtered"] + record["num_failed"]
        in_flight = record["num_waiting"] + record["num_running"] + record["num_ready"]
        assert record["num_submitted"] == done_groups + in_flight
        assert record["staleness_max"] <= ETA
