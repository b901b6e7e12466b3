"""The HTML page: one file that fetches nothing and runs nothing, whatever a policy wrote into it."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from medvista_ray.config import TrainConfig
from medvista_ray.metrics import undeclared
from medvista_ray.reports import plots
from medvista_ray.reports.gallery import boxes_of, choose, draw, split_tags
from medvista_ray.reports.html import CURVES, write_report
from medvista_ray.reports.plots import Series
from medvista_ray.reports.progress import STEP_PARTS
from medvista_ray.reports.statistics import Interval
from medvista_ray.reports.summary import EPISODES_NAME, build_summary, write_summary
from medvista_ray.reports.trajectory import TrajectoryLog, read_episodes
from medvista_ray.types import Turn
from tests.synthetic_run import FAMILIES, HOSTILE, make_episode, make_facts, make_task, phantom, write_run


class Elements(HTMLParser):
    """Collects element names and attributes as a browser would see them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs") / "synthetic"
    write_run(folder, num_tasks=48, num_steps=20)
    return write_report(folder).read_text()


def test_the_page_stands_alone(page: str) -> None:
    elements = Elements(page)
    assert not {"script", "link", "iframe", "object", "base"} & set(elements.names)
    links = [value for name, value in elements.attributes if name in ("src", "href", "xlink:href", "srcset")]
    assert links
    assert all(link.startswith("data:image/png;base64,") for link in links)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page


def test_the_page_shows_every_part(page: str) -> None:
    for part in (
        "after RL",
        "rl − sft",
        "By question family",
        "Staleness",
        "weight updates",
        "TotalSegmentator",
        "clinical",
    ):
        assert part in page
    assert page.count("<article") == 12
    assert page.count('class="gold"') >= 12
    assert page.count('class="policy"') >= 12
    assert {"✓ right" in page, "✗ wrong" in page} == {True}
    assert "nan" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", page).lower().replace("nanos", "")


def test_what_a_policy_wrote_stays_text(tmp_path: Path) -> None:
    turn = Turn(text=f"<think>{HOSTILE}</think>", tool=HOSTILE, arguments={"bbox": HOSTILE}, observation=HOSTILE)
    episode = make_episode(
        make_task(0, question=HOSTILE), [phantom(0)], turns=[turn], answer=HOSTILE, reward_parts={HOSTILE: 1.0}
    )
    with TrajectoryLog(tmp_path / EPISODES_NAME) as log:
        for arm in ("sft", "rl"):
            log.append(episode, arm, None)
    (tmp_path / "config.yaml").write_text(HOSTILE)
    write_summary(build_summary(tmp_path, TrainConfig(name=HOSTILE), make_facts()), tmp_path)
    page = write_report(tmp_path).read_text()
    elements = Elements(page)
    assert "script" not in elements.names
    assert "img" not in elements.names
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert page.count("&lt;script&gt;") >= 6
    assert "{{ 7 * 7 }}" in page


def test_every_drawn_metric_is_declared() -> None:
    drawn = [name for curve in CURVES for name, _ in curve.metrics] + [name for name, _ in STEP_PARTS]
    assert undeclared(drawn) == []


def test_an_empty_run_still_makes_a_page(tmp_path: Path) -> None:
    write_summary(build_summary(tmp_path, TrainConfig(), make_facts(staleness_histogram={})), tmp_path)
    page = write_report(tmp_path).read_text()
    assert "This run has no evaluation." in page
    assert "<article" not in page


def test_a_picture_that_is_gone_leaves_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, num_tasks=12, num_steps=2)
    for path in (tmp_path / EPISODES_NAME / "images").iterdir():
        path.unlink()
    assert "image 0 was not kept" in write_report(tmp_path).read_text()


def test_episodes_shown_mix_families_and_outcomes(tmp_path: Path) -> None:
    generator = random.Random(1)
    with TrajectoryLog(tmp_path) as log:
        for number in range(120):
            task = make_task(number, FAMILIES[number % 6])
            log.append(make_episode(task, [phantom(0), phantom(1)], correct=generator.random() < 0.6), "rl", None)
    records = list(read_episodes(tmp_path))
    chosen = choose(records)
    assert len(chosen) == 12
    assert {record.family for record in chosen} == set(FAMILIES)
    assert sum(record.correct for record in chosen) == 8
    assert choose(records) == chosen
    assert choose(records, seed=1) != chosen
    assert len({record.task_id for record in chosen}) == 12


def test_boxes_land_on_the_picture_they_name(tmp_path: Path) -> None:
    task = make_task(0)
    zoom = {"image_index": 0, "bbox": [100, 100, 300, 300]}
    again = {"image_index": 1, "bbox": [200, 200, 1200, 900], "reference_bbox": [1, 2, 30, 40]}
    turns = [
        Turn(text="", tool="zoom_in", arguments=zoom, observation="image 1", image_indices=(1,)),
        Turn(text="", tool="measure", arguments=again),
        Turn(text="", tool="measure", arguments=zoom),
    ]
    with TrajectoryLog(tmp_path) as log:
        record = log.append(make_episode(task, [phantom(0), phantom(1)], turns=turns), "rl", None)
    drawn = draw(record, tmp_path, {})
    (first,) = drawn.pictures
    (second,) = drawn.turns[0].pictures
    assert [(box.box, box.label) for box in first.policy] == [((100, 100, 300, 300), "1, 3")]
    assert [box.box for box in first.gold] == list(task.regions)
    assert [box.box for box in second.policy] == [(200, 200, 1000, 900), (1, 2, 30, 40)]
    assert second.gold == []


@pytest.mark.parametrize(
    "arguments",
    [
        {"image_index": "0", "bbox": [1, 2, 3, 4]},
        {"bbox": [1, 2, 3]},
        {"bbox": "1, 2, 3, 4"},
        {"bbox": [[1], 2, 3, 4]},
        {"bbox": [5, 5, 1, 1]},
        {"bbox": [0, 0, float("nan"), 10**400]},
        {},
    ],
)
def test_arguments_that_are_no_box_are_not_drawn(arguments: dict[str, object]) -> None:
    assert boxes_of(Turn(text="", tool="zoom_in", arguments=arguments), "1") == []


def test_a_turn_is_cut_at_its_tags() -> None:
    assert split_tags("<think>a < b</think> <answer>yes</answer>") == [("think", "a < b"), ("answer", "yes")]
    assert split_tags("no tags") == [("", "no tags")]
    assert split_tags("<think>open") == [("think", "open")]


def test_ticks_are_round_and_inside() -> None:
    assert plots.ticks(0.0, 1.0) == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert plots.ticks(3.0, 3.0) == [3.0]
    for low, high in ((0.013, 0.0171), (-5.0, 1234.0), (1e-9, 2e-9)):
        found = plots.ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(low - 1e-12 <= tick <= high + 1e-9 for tick in found)


def test_smoothing_keeps_constants_and_means() -> None:
    assert plots.smooth([2.0] * 5, 2) == [2.0] * 5
    assert plots.smooth([0.0, 3.0, 6.0], 1) == [1.5, 3.0, 4.5]


def test_a_chart_leaves_out_what_is_missing() -> None:
    assert plots.line_chart([Series("a", [1.0, 2.0], [None, float("nan")])], "x") == ""
    svg = plots.line_chart([Series("<b>", [1.0, 2.0, 3.0], [1.0, None, 2.0])], '"quoted" & <x>')
    assert "<b>" not in svg
    assert "&lt;b&gt;" in svg
    assert "nan" not in svg
    assert svg.count("<circle") == 2


def test_a_long_run_is_thinned() -> None:
    steps = [float(n) for n in range(50_000)]
    assert len(plots.line_chart([Series("a", steps, steps)], "x")) < 40_000


def test_staleness_beyond_the_bound_is_coloured_apart() -> None:
    assert "bar s1" not in plots.histogram({0: 3, 1: 2}, 1, "x")
    assert plots.histogram({0: 3, 2: 2}, 1, "x").count("bar s1") == 1


def test_bars_escape_their_names() -> None:
    interval = Interval(mean=0.5, ci95=(0.4, 0.6), n=10)
    assert "<i>" not in plots.interval_bars({"<i>": interval}, "x")
    assert "<i>" not in plots.grouped_bars({"<i>": {"<i>": interval}}, {"<i>": 0.25}, ["<i>"], "x")
