"""What `medvista-ray data list | check | score` show. Each returns the process's exit code.

Called by `cli`. Errors propagate as UserError for the command line to print.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress as Bars
from rich.table import Table

from medvista_ray.config import BenchConfig
from medvista_ray.errors import UserError
from medvista_ray.tasks.datasets import DATASETS
from medvista_ray.tasks.datasets.base import Dataset
from medvista_ray.tasks.datasets.check import CheckReport, check, find_sets, fingerprint
from medvista_ray.tasks.datasets.tables import read_jsonl
from medvista_ray.tasks.judge import Judge, JudgeColumn, judge_open
from medvista_ray.tasks.scoring import SetScore, load_grader, score_set
from medvista_ray.tasks.source import SOURCES
from medvista_ray.types import Split

ALL = 10**9
"""As a bound on tasks: all of them."""


def list_command(console: Console | None = None) -> int:
    """Name, title, what it is recognised by, licence and home of each set."""
    table = Table("bench.source", "set", "recognised by", "use", "licence", "from")
    for name in DATASETS:
        kind: type[Dataset] = SOURCES.load(name)
        marks = ", ".join(part.pattern for part in kind.parts if part.marks)
        table.add_row(name, kind.title, marks, "evaluation" if kind.evaluation_only else "all", kind.licence, kind.home)
    (console or Console()).print(table)
    return 0


def check_command(
    folder: Path, name: str | None = None, splits: str = "clean", pictures: bool = True, json_path: Path | None = None
) -> int:
    """Check the sets in a folder; 0 if all are sound, 1 if something is missing, damaged or leaks."""
    console = Console()
    reports: list[CheckReport] = []
    for kind in find_sets(folder, name):
        with Bars(console=console, transient=True) as bars:
            bar = bars.add_task(f"pictures of {kind.title}", total=None)
            progress = lambda done, total, bar=bar, bars=bars: bars.update(bar, completed=done, total=total)  # noqa: E731
            reports.append(check(kind, folder, splits, pictures, progress))
        _show(reports[-1], console)
    if json_path is not None:
        json_path.write_text(json.dumps([_plain(report) for report in reports], indent=2) + "\n")
    return int(any(report.problems for report in reports))


def score_command(
    folder: Path, answers: Path, name: str, split: str = "test", judge: Judge | None = None, json_path: Path | None = None
) -> int:
    """Score a file of answers to all questions of a split; `judge` adds its own column."""
    kind: type[Dataset] = SOURCES.load(name)
    everything = {"num_train": ALL, "num_validation": ALL, "num_test": ALL}
    dataset = kind(BenchConfig.model_validate({"source": name, "path": folder, **everything}))
    tasks, given = dataset.tasks(Split(split)), read_answers(answers)
    unknown = [identifier for identifier in given if identifier not in {task.id for task in tasks}]
    if unknown:
        raise UserError(f"{str(answers)!r}: {unknown[0]!r} is no {split} question of {kind.title} ({len(unknown)} such ids)")
    score = score_set(tasks, given, load_grader(kind.grader))
    column = judge_open(tasks, given, judge) if judge is not None else None
    facts = {"set": name, "split": split, "language": kind.language, "grader": kind.grader, "revision": fingerprint(dataset)}
    _show_score(kind.title, facts, score, column, Console())
    if json_path is not None:
        result = {**facts, **asdict(score), "judge": asdict(column) if column else None}
        json_path.write_text(json.dumps(result, indent=2) + "\n")
    return 0


def read_answers(path: Path) -> dict[str, str | None]:
    """JSON lines with "id" (or "task_id") and "answer", as the trajectory log has them. Raises UserError."""
    answers: dict[str, str | None] = {}
    for number, record in enumerate(read_jsonl(path), 1):
        identifier, answer = record.get("id", record.get("task_id")), record.get("answer")
        if not isinstance(identifier, str) or not isinstance(answer, str | None):
            raise UserError(f"{str(path)!r} record {number}: expected text in id and answer, found {identifier!r}, {answer!r}")
        if identifier in answers:
            raise UserError(f"{str(path)!r} record {number}: a second answer to {identifier!r}")
        answers[identifier] = answer
    return answers


def _show(report: CheckReport, console: Console) -> None:
    table = Table("split", "published", "used", "closed", "dropped", title=f"{report.title} in {report.root}")
    for split in [*Split, *(("none",) if "none" in report.num_published else ())]:
        columns: Sequence[Mapping[str, int]] = (report.num_published, report.num_used, report.num_closed, report.num_dropped)
        table.add_row(split, *(str(column.get(split, 0)) for column in columns))
    console.print(table)
    facts = f"splits {report.splits}, revision {report.fingerprint}, {report.language}, grader {report.grader}"
    _line(console, f"{facts}; licence: {report.licence}; {report.num_pictures} distinct pictures read")
    if report.num_without_answer:
        _line(console, f"{report.num_without_answer} questions have no published answer and are not used")
    for text in report.notes:
        _line(console, f"note: {text}")
    for text in report.problems:
        _line(console, f"PROBLEM: {text}")
    _examples(console, report.examples)
    if not report.problems:
        _line(console, "sound")


def _examples(console: Console, examples: Mapping[str, Iterable[str]]) -> None:
    for what, texts in examples.items():
        for text in texts:
            _line(console, f"  {what}: {text}")


def _show_score(title: str, facts: Mapping[str, str], score: SetScore, judge: JudgeColumn | None, console: Console) -> None:
    table = Table("measure", "value", "questions", title=f"{title}, {facts['split']} ({facts['language']})")
    for name, value, number in (
        ("closed accuracy", score.closed_accuracy, score.num_closed),
        ("open exact", score.open_exact, score.num_open),
        ("open F1", score.open_f1, score.num_open),
        ("open recall", score.open_recall, score.num_open),
        ("overall", score.overall, score.num_tasks),
    ):
        table.add_row(name, _share(value), str(number))
    if judge is not None:
        table.add_row(f"open, by judge {judge.judge}", _share(judge.open_judged), str(judge.num_judged))
    console.print(table)
    _line(console, f"{score.num_unanswered} unanswered (wrong); revision {facts['revision']}, grader {facts['grader']}")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _line(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _plain(report: CheckReport) -> dict[str, Any]:
    return {**asdict(report), "root": str(report.root), "problems": report.problems, "notes": report.notes}
