"""What `medvista-ray check env|tool NAME` prints: every violation at once. Called by `cli`.

Raises UnknownNameError if the name loads nothing; returns 1 if there is a violation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from medvista_ray.envs.checker import ENVIRONMENTS, check_environment
from medvista_ray.errors import ConfigError
from medvista_ray.tools.catalog import TOOLS
from medvista_ray.tools.checker import check_tool


def check_command(kind: str, name: str, arguments: Mapping[str, Any] | None = None, console: Console | None = None) -> int:
    """Check `name`, a registered one or "module:Class"."""
    if arguments is not None and not isinstance(arguments, dict):
        raise ConfigError(f"--args = {arguments!r}: a JSON object needed")
    console = console or Console()
    violations = check_tool(TOOLS.load(name), arguments) if kind == "tool" else check_environment(ENVIRONMENTS.load(name))
    for violation in violations:
        console.print(f"{violation.rule}: {violation.message}", markup=False, highlight=False, soft_wrap=True)
    num = len(violations)
    console.print(f"{kind} {name}: {'ok' if not num else f'{num} violations'}", markup=False, highlight=False, soft_wrap=True)
    return int(bool(violations))
