"""Budgets that keep the code readable: sizes of files and functions, and no prints outside the command line."""

from __future__ import annotations

import ast
from pathlib import Path
from statistics import median

import pytest

CODE = ("medvista_ray", "trainers", "actors", "serve_apps", "benchmarks")
MAX_FILE_LINES, P90_FILE_LINES, MEDIAN_FILE_LINES = 450, 300, 120
MAX_FUNCTION_LINES, MEDIAN_FUNCTION_LINES = 60, 10
MAX_ACTOR_LINES = 150
MAY_PRINT = ("medvista_ray/cli.py", "benchmarks/")


@pytest.fixture(scope="module")
def files(root: Path) -> dict[str, str]:
    """Text of each source file by its path in the repository."""
    paths = [path for folder in CODE for path in sorted((root / folder).rglob("*.py"))]
    return {path.relative_to(root).as_posix(): path.read_text() for path in paths}


def function_lines(text: str) -> dict[str, int]:
    """Length in lines of each function in `text`, by "line name"."""
    nodes = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {f"{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in nodes}


def num_prints(text: str) -> int:
    calls = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call)]
    return sum(isinstance(call.func, ast.Name) and call.func.id == "print" for call in calls)


def test_files_are_short(files: dict[str, str]) -> None:
    sizes = {name: text.count("\n") for name, text in files.items() if not name.endswith("__init__.py")}
    assert [(name, size) for name, size in sizes.items() if size > MAX_FILE_LINES] == []
    ordered = sorted(sizes.values())
    assert ordered[int(0.9 * (len(ordered) - 1))] <= P90_FILE_LINES
    assert median(ordered) <= MEDIAN_FILE_LINES


def test_actors_are_thin_shells(files: dict[str, str]) -> None:
    sizes = {name: text.count("\n") for name, text in files.items() if name.startswith("actors/")}
    assert [(name, size) for name, size in sizes.items() if size > MAX_ACTOR_LINES] == []


def test_functions_are_short(files: dict[str, str]) -> None:
    sizes = {f"{name}:{key}": size for name, text in files.items() for key, size in function_lines(text).items()}
    assert [(name, size) for name, size in sizes.items() if size > MAX_FUNCTION_LINES] == []
    assert median(sizes.values()) <= MEDIAN_FUNCTION_LINES


def test_only_the_command_line_prints(files: dict[str, str]) -> None:
    assert [name for name, text in files.items() if num_prints(text) and not name.startswith(MAY_PRINT)] == []


def test_every_module_says_what_it_is(files: dict[str, str]) -> None:
    assert [name for name, text in files.items() if text.strip() and not ast.get_docstring(ast.parse(text))] == []


def test_the_measures_can_fail() -> None:
    text = "async def f():\n" + "    x = 1\n" * 70 + "    print(x)\n"
    assert function_lines(text) == {"1 f": 72}
    assert num_prints(text) == 1
