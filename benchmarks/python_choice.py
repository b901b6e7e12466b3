"""Which Python of this machine is to run the project? Prints its path; the Makefile makes `.venv` with it.

    python benchmarks/python_choice.py

Of the version that runs this script, the interpreters of PATH and of the system. One that was compiled without its
optimisations (pyenv's default) takes 1.4 to 1.7 times as long as a distribution's, and every tool call, weight update and
scheduling step pays for it. The one that runs this script is taken unless another is faster by more than noise.
Standard library only: this runs before there is an environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

WORTH_IT = 0.85
"""Another interpreter has to need less than this share of the time."""
SYSTEM = ("/usr/local/bin", "/usr/bin")
TIMEOUT_S = 30.0
NUM_ROUNDS = 3
CALLS = """
import ensurepip, time, venv
class Adder:
    def add(self, number): return {"sum": number + 1}
def work():
    adder, kept = Adder(), {}
    for i in range(60_000):
        kept[i & 255] = (lambda **named: named)(**adder.add(i))
best = 1e9
for _ in range(5):
    start = time.process_time()
    work()
    best = min(best, time.process_time() - start)
print(best)
"""
"""What the project's Python time goes to: calls, attributes, dictionaries. It also needs what a new environment needs."""


def candidates(folders: list[str], name: str) -> list[Path]:
    """Executables called `name`, each file once, in order."""
    found: dict[Path, Path] = {}
    for folder in filter(None, folders):
        path = Path(folder) / name
        if path.is_file() and os.access(path, os.X_OK):
            found.setdefault(path.resolve(), path)
    return list(found.values())


def seconds(python: Path) -> float | None:
    """Time of the calls there; None if it cannot make an environment (no venv or ensurepip) or does not run."""
    try:
        run = subprocess.run([python, "-I", "-c", CALLS], capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
        return float(run.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None


def choose(own: Path, others: list[Path]) -> tuple[Path, str]:
    """The interpreter to take, and why if it is not `own`."""
    best_s: dict[Path, float] = {}
    for python in [own, *others] * NUM_ROUNDS:  # in turns: a machine's speed changes from second to second
        taken_s = seconds(python)
        if taken_s is not None:
            best_s[python] = min(taken_s, best_s.get(python, taken_s))
    fastest = min(best_s, key=lambda python: best_s[python], default=own)
    if fastest == own or (own in best_s and best_s[fastest] >= WORTH_IT * best_s[own]):
        return own, ""
    what = f"{best_s[own] / best_s[fastest]:.1f} times as fast as {own}" if own in best_s else f"complete, which {own} is not,"
    return fastest, f"{fastest} is {what} and is taken; PYTHON=... takes another"


def main() -> int:
    """Path on the standard output, reason on the other."""
    own = Path(sys.executable).resolve()
    name = f"python{sys.version_info.major}.{sys.version_info.minor}"
    others = candidates([*os.environ.get("PATH", "").split(os.pathsep), *SYSTEM], name)
    chosen, why = choose(own, [python for python in others if python.resolve() != own])
    if why:
        print(why, file=sys.stderr)
    print(chosen)
    return 0


if __name__ == "__main__":
    sys.exit(main())
