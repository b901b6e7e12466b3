"""The tables of benchmark figures: made from results, held to them, and a check that can fail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.table import BEGIN, END, Figure, compare, look_up, main, read_figures, replace_table, table

BASELINE = {
    "speed.mean": {"what": "how fast", "better": "higher", "unit": "1/s", "target": 5, "value": 10.0, "headline": True,
                   "tolerance": 0.2},
    "num_lost": {"what": "how many lost", "better": "lower", "target": 0, "tolerance": 0.0},
}  # fmt: skip
RESULT = {"speed": {"mean": 9.5}, "num_lost": 0, "num_cores": 2, "load_before": 0.4}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name, content in (("baselines", BASELINE), ("results", RESULT)):
        (tmp_path / "benchmarks" / name).mkdir(parents=True)
        (tmp_path / "benchmarks" / name / "race.json").write_text(json.dumps(content))
    for readme in (tmp_path / "README.md", tmp_path / "benchmarks" / "README.md"):
        readme.write_text(f"before\n\n{BEGIN}\nold\n{END}\n\nafter\n")
    return tmp_path


def test_the_tables_of_this_project_are_what_the_results_say(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--check"], root) == 0, capsys.readouterr().out


def test_every_stored_result_has_a_baseline_and_every_baseline_a_script_or_no_result(root: Path) -> None:
    folder = root / "benchmarks"
    named = {path.stem: read_figures(path) for path in (folder / "baselines").glob("*.json")}
    stored = {path.stem for path in (folder / "results").glob("*.json")}
    assert len(named) >= 5
    assert stored <= named.keys()
    assert all((folder / f"{name}.py").is_file() for name in stored)


def test_a_table_is_made_from_results_and_a_stale_one_is_told(project: Path) -> None:
    assert main(["--check"], project) == 1
    assert "old" in (project / "README.md").read_text(), "--check changes nothing"
    assert main([], project) == 0
    text = (project / "benchmarks" / "README.md").read_text()
    assert "| `race.py` | how fast | 9.5 1/s | >= 5 | 2 cores |" in text
    assert "| `race.py` | how many lost | 0 | <= 0 | 2 cores |" in text
    assert text.startswith("before\n")
    assert text.endswith("\n\nafter\n")
    assert "how many lost" not in (project / "README.md").read_text(), "the main README shows headlines alone"
    assert main(["--check"], project) == 0
    (project / "benchmarks" / "results" / "race.json").write_text(json.dumps({**RESULT, "num_lost": 3}))
    assert main(["--check"], project) == 1


def test_what_was_not_run_says_so_and_a_busy_machine_is_named(project: Path) -> None:
    path = project / "benchmarks" / "results" / "race.json"
    path.write_text(json.dumps({**RESULT, "load_before": 12.0}))
    assert "busy machine" in table(project / "benchmarks", headline_only=False)[2]
    path.unlink()
    assert "| not run |" in table(project / "benchmarks", headline_only=False)[2]
    assert table(project / "benchmarks", headline_only=True) == ["(no result is stored yet)"]


@pytest.mark.parametrize(
    ("number", "verdict"), [(8.0, "ok"), (30.0, "ok"), (7.9, "worse than 10 by more than 20%"), (None, "missing")]
)
def test_a_new_figure_may_be_worse_by_its_tolerance_and_no_more(project: Path, number: float | None, verdict: str) -> None:
    new = project / "race.json"
    new.write_text(json.dumps({"speed": {"mean": number}, "num_lost": 0}))
    assert [found for _, _, found in compare(new, project / "benchmarks")] == [verdict, "ok"]
    assert main(["--compare", str(new)], project) == int(verdict != "ok")


def test_without_a_value_the_target_is_the_bound_and_lower_may_be_better() -> None:
    figure = Figure(key="k", what="time", better="lower", target=3.0)
    assert (figure.verdict(3.0), figure.verdict(3.1)) == ("ok", "misses the target 3")
    slower = Figure(key="k", what="time", better="lower", value=2.0, tolerance=0.5, target=1.0)
    assert (slower.verdict(3.0), slower.verdict(3.01)) == ("ok", "worse than 2 by more than 50%")


def test_a_key_that_leads_nowhere_is_no_number() -> None:
    assert look_up({"a": {"b": 1}}, "a.b") == 1.0
    assert [look_up({"a": {"b": True}}, key) for key in ("a", "a.b", "a.c", "a.b.c", "x")] == [None] * 5


@pytest.mark.parametrize("text", ["no marker", BEGIN, f"{END}{BEGIN}", f"{BEGIN}{END}{BEGIN}{END}"])
def test_markers_that_are_missing_twice_or_in_the_wrong_order_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="once each"):
        replace_table(text, [])
