"""Who may import whom, read from the syntax trees: medvista_ray <- trainers <- actors, medvista_ray <- serve_apps."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGES = ("medvista_ray", "trainers", "actors", "serve_apps")
FORBIDDEN = {
    "medvista_ray": {"ray", "trainers", "actors", "serve_apps"},
    "trainers": {"ray", "actors", "serve_apps"},
    "actors": {"serve_apps"},
    "serve_apps": {"trainers", "actors"},
}
ROOTS = ("train", "evaluate", "cli", "main_job")
"""Modules of medvista_ray that compose the whole, inside their functions."""
HEAVY = ("torch", "vllm", "ray", "transformers", "skimage", "torchvision", "accelerate")


@dataclass(frozen=True)
class Import:
    """One module name that a file imports."""

    module: str
    line: int
    deferred: bool
    """Inside a function."""

    @property
    def package(self) -> str:
        return self.module.partition(".")[0]


def imports_of(source: str) -> list[Import]:
    return list(_walk(ast.parse(source), deferred=False))


def _walk(node: ast.AST, *, deferred: bool) -> Iterator[Import]:
    for child in ast.iter_child_nodes(node):
        yield from (Import(name, child.lineno, deferred) for name in _modules(child))  # type: ignore[attr-defined]
        inside = deferred or isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from _walk(child, deferred=inside)


def _modules(node: ast.AST) -> list[str]:
    """The modules that this one node names: an import statement, or import_module / __import__ of a literal."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        return [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
        return [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    return []


def violations(name: str, source: str) -> list[str]:
    """Imports of the file `name` ("package/module.py") that break the direction, as readable lines."""
    package = name.partition("/")[0]
    is_root = name in {f"medvista_ray/{root}.py" for root in ROOTS}
    found: list[str] = []
    for item in imports_of(source):
        if item.package in FORBIDDEN[package] and not (is_root and item.deferred):
            where = "at module level" if is_root else "at all"
            found.append(f"{name}:{item.line} may not import {item.module} {where}")
        if item.module in {f"medvista_ray.{root}" for root in ROOTS} and not (is_root and item.deferred):
            if name == "medvista_ray/cli.py":  # its sub-commands are the same light shells
                continue
            found.append(f"{name}:{item.line} may not import the composition root {item.module}")
    return found


def sources(root: Path) -> list[Path]:
    return [path for package in PACKAGES for path in sorted((root / package).rglob("*.py"))]


def test_imports_follow_the_direction(root: Path) -> None:
    found = [v for p in sources(root) for v in violations(p.relative_to(root).as_posix(), p.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("name", "source", "num_violations"),
    [
        ("medvista_ray/flow/admission.py", "import ray", 1),
        ("medvista_ray/flow/admission.py", "def f():\n    from ray import serve", 2),
        ("medvista_ray/flow/admission.py", "if TYPE_CHECKING:\n    import trainers.grpo", 1),
        (
            "medvista_ray/flow/admission.py",
            "import importlib\nx = importlib.import_module('actors.learner')",
            1,
        ),
        ("medvista_ray/flow/admission.py", "from medvista_ray import train", 1),
        ("medvista_ray/flow/admission.py", "import rayon, torch", 0),
        ("medvista_ray/main_job.py", "import ray", 1),
        ("medvista_ray/main_job.py", "def f():\n    import ray, trainers.sft, actors.learner, serve_apps.tools", 0),
        ("trainers/sft.py", "import ray", 1),
        ("trainers/sft.py", "from medvista_ray.types import Episode", 0),
        ("actors/learner.py", "import ray, trainers.grpo", 0),
        ("actors/learner.py", "def f():\n    import serve_apps", 1),
        ("serve_apps/tools.py", "from ray import serve", 0),
        ("serve_apps/tools.py", "from actors import learner", 2),
    ],
)
def test_the_check_sees_what_it_should(name: str, source: str, num_violations: int) -> None:
    assert len(violations(name, source)) == num_violations


LIGHT = ("types", "config", "registry", "errors", "train", "evaluate", "cli")
IN_A_FORK_EACH = """
import importlib, os, sys
import numpy, pydantic, yaml  # allowed everywhere, and most of the time that an import takes
for name in sys.argv[1].split():
    child = os.fork()
    if not child:
        importlib.import_module("medvista_ray." + name)
        heavy = set(sys.argv[2].split()) & set(sys.modules)
        print(name, *sorted(heavy), flush=True)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, name
"""


def test_light_modules_import_nothing_heavy(root: Path) -> None:
    """Each by itself, in a process that has seen no other of ours; the last shows that the check can fail."""
    command = [sys.executable, "-c", IN_A_FORK_EACH, " ".join((*LIGHT, "tools.refine.resampling")), " ".join((*HEAVY, "PIL"))]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == [*LIGHT, "tools.refine.resampling PIL"]
