"""What `medvista-ray episodes list | show | compact` do. Each returns the process's exit code.

Owns the filters. Invariant: reads a run's log while the run goes on; never writes to it but in `compact`. Called by
`cli`. Errors propagate as RunFolderError for the command line to print.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from medvista_ray.errors import RunFolderError, did_you_mean
from medvista_ray.reports.compaction import compact
from medvista_ray.reports.drawing import draw_episode
from medvista_ray.reports.segments import segments
from medvista_ray.reports.summary import EPISODES_NAME
from medvista_ray.reports.trajectory import EpisodeRecord, read_episodes
from medvista_ray.types import EpisodeStatus

OUTCOMES = ("right", "wrong", "truncated", "failed")


@dataclass(frozen=True)
class Filters:
    """Which episodes; None is any."""

    outcome: str | None = None
    """One of OUTCOMES."""
    tool: str | None = None
    """A tool that was called."""
    error: str | None = None
    """An error code that occurred, E1..E6."""
    arm: str | None = None
    family: str | None = None
    task: str | None = None

    def match(self, record: EpisodeRecord) -> bool:
        """Whether the episode passes every filter that is set."""
        checks = (
            (self.outcome, [outcome(record)]),
            (self.tool, [turn.tool for turn in record.turns]),
            (self.error, [code.value for code in record.error_codes]),
            (self.arm, [record.arm]),
            (self.family, [record.family]),
            (self.task, [record.task_id]),
        )
        return all(wanted is None or wanted in found for wanted, found in checks)


def outcome(record: EpisodeRecord) -> str:
    """One of OUTCOMES."""
    if record.status is EpisodeStatus.ANSWERED:
        return "right" if record.correct else "wrong"
    return record.status.value


def list_command(run: Path, filters: Filters, limit: int, console: Console | None = None) -> int:
    """One line per episode: number, arm, step, family, outcome, tools, errors, reward; then the counts."""
    console = console or Console()
    table = Table("no.", "arm", "step", "family", "outcome", "calls", "errors", "reward", "answer", "pictures", box=None)
    found = 0
    for number, record in _chosen(run, filters):
        found += 1
        if found <= limit:
            table.add_row(*map(Text, _cells(number, record)))
    console.print(table)
    console.print(f"{found} episodes" + (f", the first {limit} shown" if found > limit else ""))
    return 0


def show_command(run: Path, filters: Filters, number: int | None, out: Path, console: Console | None = None) -> int:
    """Draw one episode to `out` (PNG): the one of that number, else the first that matches and has pictures."""
    console = console or Console()
    chosen = list(_chosen(run, filters))
    if number is not None:
        chosen = [(n, record) for n, record in chosen if n == number]
    elif any(record.has_pictures for _, record in chosen):
        chosen = [(n, record) for n, record in chosen if record.has_pictures]
    if not chosen:
        raise RunFolderError(f"{str(run)!r}: no such episode; `medvista-ray episodes list {run}` names what is there")
    found, record = chosen[0]
    out.parent.mkdir(parents=True, exist_ok=True)
    draw_episode(record, log_folder(run)).save(out, format="PNG")
    console.print(f"episode {found} ({outcome(record)}) drawn to {out}", markup=False, soft_wrap=True)
    return 0


def compact_command(run: Path, console: Console | None = None) -> int:
    """Compress the log and say what it saved."""
    console = console or Console()
    done = compact(log_folder(run))
    console.print(
        f"{done.num_episodes} episodes kept, {done.num_torn} torn lines and {done.num_pictures_removed} unused pictures removed: "
        f"{done.bytes_before / 2**20:.1f} MiB -> {done.bytes_after / 2**20:.1f} MiB",
        soft_wrap=True,
    )
    return 0


def log_folder(run: Path) -> Path:
    """The trajectory log in a run folder, or `run` itself if it is one. Raises RunFolderError if neither is."""
    for folder in (run / EPISODES_NAME, run):
        if folder.is_dir() and segments(folder):
            return folder
    raise RunFolderError(f"{str(run)!r} holds no trajectory log: no episodes.jsonl in it or in its {EPISODES_NAME}/")


def _chosen(run: Path, filters: Filters) -> Iterator[tuple[int, EpisodeRecord]]:
    """Matching episodes with their numbers (from 0, over the whole log). Raises RunFolderError for an unknown outcome."""
    if filters.outcome is not None and filters.outcome not in OUTCOMES:
        raise RunFolderError(f"outcome {filters.outcome!r} is not known; {did_you_mean(filters.outcome, OUTCOMES)}")
    for number, record in enumerate(read_episodes(log_folder(run))):
        if filters.match(record):
            yield number, record


def _cells(number: int, record: EpisodeRecord) -> list[str]:
    step = "" if record.step is None else str(record.step)
    tools = " ".join(turn.tool for turn in record.turns if turn.tool)
    codes = " ".join(record.error_codes)
    pictures = "yes" if record.has_pictures else ""
    reward, answer = f"{record.reward:.2f}", (record.answer or "")[:24]
    return [str(number), record.arm, step, record.family, outcome(record), tools, codes, reward, answer, pictures]
