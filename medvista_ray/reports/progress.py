"""What a run shows while it goes: a live panel on a terminal, one plain line per event in a log.

Owns the phases' wall times (`phases_s`) and the wording of a step. It never fails a run: missing metrics are left out.
Called by the composition roots; the metrics are those of metrics.jsonl.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from medvista_ray.reports.view import duration

SPARKS = "▁▂▃▄▅▆▇█"
BALANCED = 0.1
"""Idle fractions closer than this count as balanced."""

STEP_PARTS = (
    ("reward_mean", "reward {:.3f}"),
    ("accuracy", "accuracy {:.2f}"),
    ("calls_per_episode", "calls {:.2f}"),
    ("staleness_mean", "staleness {:.2f}"),
    ("tokens_per_s", "{:,.0f} tok/s"),
    ("step_s", "{:.1f} s"),
)


def who_waits(metrics: Mapping[str, Any]) -> str:
    """Who waits for whom, in words; empty if the idle fractions are unknown."""
    generator, learner = _number(metrics, "idle_generator"), _number(metrics, "idle_learner")
    if generator is None or learner is None:
        return ""
    if abs(generator - learner) < BALANCED:
        return "balanced"
    if learner > generator:
        return f"learner waits for episodes ({100 * learner:.0f} %)"
    return f"generators wait for the learner ({100 * generator:.0f} %)"


def step_line(metrics: Mapping[str, Any], num_steps: int | None = None) -> str:
    """One step in one line; metrics that are missing are left out."""
    step = metrics.get("step", "?")
    parts = [f"step {step}/{num_steps}" if num_steps else f"step {step}"]
    for key, form in STEP_PARTS:
        if (value := _number(metrics, key)) is not None:
            parts.append(form.format(value))
    return "  ".join([*parts, *filter(None, [who_waits(metrics)])])


def sparkline(values: list[float], width: int = 40) -> str:
    """The last `width` values as block characters, scaled to their own range."""
    tail = values[-width:]
    if not tail:
        return ""
    low, high = min(tail), max(tail)
    scale = (len(SPARKS) - 1) / (high - low) if high > low else 0.0
    return "".join(SPARKS[round((value - low) * scale)] for value in tail)


class RunProgress:
    """A run's progress as a context manager; `phase`, `advance`, `step` and `note` may be called from one thread."""

    def __init__(self, title: str, num_steps: int | None = None, console: Console | None = None) -> None:
        self._title = title
        self._num_steps = num_steps
        self._console = console or Console(stderr=True)
        self._rewards: list[float] = []
        self._last: Mapping[str, Any] = {}
        self._phase: tuple[str, float] | None = None
        self._done: tuple[int, int] | None = None
        self.phases_s: dict[str, float] = {}
        """Wall seconds of each finished phase, in order."""
        # Last: it draws itself once at birth.
        self._live = Live(get_renderable=self._render, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> RunProgress:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    @contextmanager
    def phase(self, name: str) -> Generator[None]:
        """Times a phase of the run, also when it ends by an exception."""
        started = time.monotonic()
        self._phase, self._done = (name, started), None
        self._log(f"{name} …")
        try:
            yield
        finally:
            seconds = time.monotonic() - started
            self.phases_s[name] = self.phases_s.get(name, 0.0) + seconds
            self._phase = None
            self._log(f"{name}: {duration(seconds)}")

    def advance(self, done: int, total: int) -> None:
        """How far the phase is; a log gets a line at each tenth."""
        before, self._done = self._done, (done, total)
        tenth = 10 * done // max(total, 1)
        if self._phase and (before is None or tenth > 10 * before[0] // max(before[1], 1)):
            self._log(f"{self._phase[0]}: {done} of {total}")

    def step(self, metrics: Mapping[str, Any]) -> None:
        """A step of the RL loop has ended."""
        self._last = metrics
        if (reward := _number(metrics, "reward_mean")) is not None:
            self._rewards.append(reward)
        self._log(step_line(metrics, self._num_steps))

    def note(self, text: str) -> None:
        """Something worth a line: a recovery, a checkpoint, a dead replica."""
        self._console.print(Text(text), soft_wrap=True)

    def _log(self, line: str) -> None:
        if not self._console.is_terminal:
            self._console.print(Text(line), soft_wrap=True)

    def _render(self) -> RenderableType:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim")
        grid.add_column()
        for name, seconds in self.phases_s.items():
            grid.add_row(f"✓ {name}", duration(seconds))
        if self._phase:
            name, started = self._phase
            done = f"   {self._done[0]} of {self._done[1]}" if self._done else ""
            grid.add_row(Text(f"▸ {name}", style="bold"), duration(time.monotonic() - started) + done)
        parts: list[RenderableType] = [grid]
        if self._last:
            parts += [Text(""), Text(step_line(self._last, self._num_steps))]
            parts += [Text(f"reward {sparkline(self._rewards)}", style="green")]
        return Panel(Group(*parts), title=Text(self._title), border_style="dim")


def _number(metrics: Mapping[str, Any], key: str) -> float | None:
    value = metrics.get(key)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
