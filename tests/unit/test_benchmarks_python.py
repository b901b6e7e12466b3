"""The choice of the interpreter that the environment is made with; scripts that print a time stand in for interpreters."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from benchmarks.python_choice import candidates, choose, seconds


@pytest.fixture
def interpreter(tmp_path: Path):
    def make(folder: str, prints: str) -> Path:
        path = tmp_path / folder / "python3"
        path.parent.mkdir()
        path.write_text(f"#!/bin/sh\n{prints}\n")
        path.chmod(0o755)
        return path

    return make


def test_the_own_interpreter_stays_unless_another_is_clearly_faster(interpreter) -> None:
    own, little, much = interpreter("own", "echo 0.10"), interpreter("little", "echo 0.09"), interpreter("much", "echo 0.05")
    assert choose(own, []) == (own, "")
    assert choose(own, [little]) == (own, "")
    chosen, why = choose(own, [little, much])
    assert chosen == much
    assert "2.0 times as fast" in why
    assert "PYTHON=" in why


def test_one_that_cannot_make_an_environment_is_left_out(interpreter) -> None:
    own, broken = interpreter("own", "echo 0.10"), interpreter("broken", "echo no module named ensurepip >&2; exit 1")
    assert seconds(broken) is None
    assert choose(own, [broken]) == (own, "")
    chosen, why = choose(broken, [own])
    assert chosen == own
    assert "complete" in why


def test_this_interpreter_is_timed_by_its_own_calls() -> None:
    taken_s = seconds(Path(sys.executable))
    assert taken_s is not None
    assert 0.0 < taken_s < 10.0


def test_each_file_is_a_candidate_once(interpreter, tmp_path: Path) -> None:
    path = interpreter("bin", "echo 1")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "python3").symlink_to(path)
    folders = [str(tmp_path / "links"), "", str(tmp_path / "bin"), str(tmp_path / "absent")]
    assert [found.resolve() for found in candidates(folders, "python3")] == [path]
