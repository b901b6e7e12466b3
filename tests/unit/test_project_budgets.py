"""Budgets that keep the code readable: sizes of files and functions, and no prints outside the command line."""

from __future__ import annotations

import ast
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Measures:
    """What one file's syntax tree tells; the tree itself is dropped, as many live nodes slow the collector down."""

    function_lines: dict[str, int]
    """Length in lines of each function, by "line name"."""
    num_prints: int
    has_docstring: bool


def measures_of(text: str) -> Measures:
    tree = ast.parse(text)
    nodes = list(ast.walk(tree))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    called = [n.func for n in nodes if isinstance(n, ast.Call)]
    return Measures(
        {f"{n.lineno} {n.name}": (n.end_lineno or n.lineno) - n.lineno + 1 for n in functions},
        sum(isinstance(func, ast.Name) and func.id == "print" for func in called),
        bool(ast.get_docstring(tree)),
    )


@pytest.fixture(scope="module")
def measures(files: dict[str, str]) -> dict[str, Measures]:
    return {name: measures_of(text) for name, text in files.items()}


def test_files_are_short(files: dict[str, str]) -> None:
    sizes = {name: text.count("\n") for name, text in files.items() if not name.endswith("__init__.py")}
    assert [(name, size) for name, size in sizes.items() if size > MAX_FILE_LINES] == []
    ordered = sorted(sizes.values())
    assert ordered[int(0.9 * (len(ordered) - 1))] <= P90_FILE_LINES
    assert median(ordered) <= MEDIAN_FILE_LINES


def test_actors_are_thin_shells(files: dict[str, str]) -> None:
    sizes = {name: text.count("\n") for name, text in files.items() if name.startswith("actors/")}
    assert [(name, size) for name, size in sizes.items() if size > MAX_ACTOR_LINES] == []


def test_functions_are_short(measures: dict[str, Measures]) -> None:
    sizes = {f"{name}:{key}": size for name, m in measures.items() for key, size in m.function_lines.items()}
    assert [(name, size) for name, size in sizes.items() if size > MAX_FUNCTION_LINES] == []
    assert median(sizes.values()) <= MEDIAN_FUNCTION_LINES


def test_only_the_command_line_prints(measures: dict[str, Measures]) -> None:
    assert [name for name, m in measures.items() if m.num_prints and not name.startswith(MAY_PRINT)] == []


def test_every_module_says_what_it_is(files: dict[str, str], measures: dict[str, Measures]) -> None:
    assert [name for name, m in measures.items() if files[name].strip() and not m.has_docstring] == []


def test_the_measures_can_fail() -> None:
    measured = measures_of("async def f():\n" + "    x = 1\n" * 70 + "    print(x)\n")
    assert measured == Measures({"1 f": 72}, num_prints=1, has_docstring=False)
