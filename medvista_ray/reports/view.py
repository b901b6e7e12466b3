"""The run summary on a terminal: what `medvista-ray summary RUN_DIR` and the end of a run show.

Owns only the rendering of a `RunSummary` with rich; text that a policy wrote is never read as markup.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medvista_ray.reports.statistics import Interval
from medvista_ray.reports.summary import RunSummary

ARM_NAMES = {
    "no_tools": "base, no tools",
    "naive": "base, given tools",
    "sft": "after SFT",
    "rl": "after RL",
}


def render_summary(summary: RunSummary) -> RenderableType:
    """The summary as one rich renderable."""
    parts = [_accuracy(summary), _families(summary), _tools(summary), _run(summary)]
    title = Text(f"run {summary.name} · seed {summary.seed} · {duration(summary.wall_s)}")
    return Panel(Group(*[part for part in parts if part is not None]), title=title, border_style="dim")


def percent(interval: Interval | None) -> str:
    """For example "71.2 % [66.8, 75.5]"."""
    if interval is None:
        return "–"
    low, high = interval.ci95
    return f"{100 * interval.mean:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def points(interval: Interval) -> str:
    """A difference, for example "+11.0 [+6.2, +15.9]"."""
    low, high = interval.ci95
    return f"{100 * interval.mean:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def share(value: float | None) -> str:
    """For example "71 %"."""
    return f"{100 * value:.0f} %" if value is not None else "–"


def duration(seconds: float) -> str:
    """For example "38 min 05 s"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _accuracy(summary: RunSummary) -> RenderableType | None:
    if not summary.arms:
        return Text("no evaluation in this run", style="dim")
    table = _table("arm", "accuracy, 95 % interval", "tasks", "calls/episode", "used tools", "errors")
    for arm, behaviour in summary.arms.items():
        interval = summary.accuracy.get(arm)
        table.add_row(
            Text(ARM_NAMES.get(arm, arm)),
            percent(interval),
            str(interval.n if interval else 0),
            f"{behaviour.calls_per_episode:.2f}",
            share(behaviour.used_tools),
            _counts(behaviour.error_codes),
        )
    lines = [Text(f"{name:<18} {points(value)} points", style="bold") for name, value in summary.differences.items()]
    return Group(table, Text(""), *lines, Text(""))


def _families(summary: RunSummary) -> RenderableType | None:
    if not summary.families:
        return None
    arms = list(summary.arms)
    table = _table("family", "chance", *[ARM_NAMES.get(arm, arm) for arm in arms])
    for name, family in summary.families.items():
        cells = [share(family.arms[arm].mean) if arm in family.arms else "–" for arm in arms]
        table.add_row(Text(name), share(family.chance), *cells)
    return Group(table, Text(""))


def _tools(summary: RunSummary) -> RenderableType | None:
    if not summary.tools:
        return None
    table = _table("tool", "calls", "p50", "errors")
    for name, use in summary.tools.items():
        latency = f"{use.p50_ms:.1f} ms" if use.p50_ms is not None else "–"
        table.add_row(Text(name), f"{use.num_calls:,}", latency, f"{use.num_errors:,}")
    return Group(table, Text(""))


def _run(summary: RunSummary) -> RenderableType:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column()
    for name, value in run_lines(summary):
        grid.add_row(name, Text(value))
    marks = [_mark(rule, holds) for rule, holds in summary.invariants.items()]
    return Group(grid, Text(""), *marks)


def _mark(rule: str, holds: bool) -> Text:
    return Text(f"{'✓' if holds else '✗ BROKEN:'} {rule}", style="green" if holds else "bold red")


def run_lines(summary: RunSummary) -> Iterable[tuple[str, str]]:
    """Name and value of the facts about the machinery, for the terminal and the page alike."""
    if curve := summary.reward_curve:
        span = f"first and last {curve.window} of {curve.num_steps} steps"
        yield "reward", f"{curve.start:.3f} → {curve.end:.3f} ({span})"
    ended = f"{summary.trained} trained + {summary.filtered} filtered + {summary.failed} failed"
    yield "groups", f"{summary.submitted} submitted = {ended} + {summary.running} running"
    yield "staleness", f"at most {summary.staleness_max} (bound {summary.eta}); {_counts(summary.staleness_histogram)}"
    updates = summary.weight_updates
    median = f", median {updates.median_ms:.0f} ms" if updates.median_ms is not None else ""
    yield "weight updates", f"{updates.num}{median}"
    yield "idle", f"generator {share(summary.idle_frac.generator)}, learner {share(summary.idle_frac.learner)}"
    yield "vLLM", f"{summary.vllm_version or '–'}; {'; '.join(summary.vllm_processes) or 'no process'}"
    yield "Serve", ", ".join(f"{name} ({state})" for name, state in summary.serve_applications.items()) or "–"
    largest = ", ".join(f"{name} {size:.1f}" for name, size in list(summary.memory_by_process_gib.items())[:4])
    yield "peak memory", f"{summary.peak_memory_gib:.1f} GiB" + (f" ({largest})" if largest else "")
    yield "time", ", ".join(f"{name} {duration(seconds)}" for name, seconds in summary.phases_s.items()) or "–"
    yield "versions", ", ".join(f"{name} {number}" for name, number in summary.versions.items())


def _counts(counts: Mapping[str, int] | Mapping[int, int]) -> str:
    return ", ".join(f"{key}: {count:,}" for key, count in counts.items()) or "none"
