"""What every benchmark writes beside its figures: machine, load, command, versions."""

from __future__ import annotations

import json
import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def facts(packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Machine, cores that this process may use, load of the last minute, the command line, versions of `packages`."""
    return {
        "machine": _processor(),
        "num_cores": len(os.sched_getaffinity(0)),
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join(["python", *sys.argv]),
        "python": platform.python_version(),
        "versions": {name: found for name in packages if (found := _version(name))},
    }


def write(path: Path, figures: dict[str, Any]) -> None:
    """To the file and to the screen."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def _processor() -> str:
    names = [line.split(":", 1)[1].strip() for line in _cpu_info() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _cpu_info() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
