"""The table of figures in the READMEs, made from stored results; and a new result compared with its baseline.

    python benchmarks/table.py                           # rewrite the tables
    python benchmarks/table.py --check                   # 1 if a table is not what the results say
    python benchmarks/table.py --compare NEW.json ...    # 1 if a figure is worse than its baseline allows

`results/NAME.json` is what a benchmark wrote; `baselines/NAME.json` names its figures (dotted keys of that JSON) with meaning,
unit, direction, the target, and the value to compare with and its relative tolerance. Without a value the target is the
bound. A table stands between two marker lines of a README and is never edited by hand.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- benchmarks: made by benchmarks/table.py -->", "<!-- end of benchmarks -->"
HEAD = ("| script | figure | measured | target | on |", "|---|---|---|---|---|")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One line of the table."""

    key: str
    """Dotted path in the result."""
    what: str
    better: Literal["higher", "lower"]
    unit: str = ""
    target: float | None = None
    value: float | None = None
    """What was measured before, to compare with."""
    tolerance: float = 0.1
    """By which share of `value` a figure may be worse: the spread of repeated runs."""
    headline: bool = False
    """Whether it stands in the main README too."""

    def reaches(self, number: float, bound: float) -> bool:
        """Whether `number` is no worse than `bound`."""
        return number >= bound if self.better == "higher" else number <= bound

    def verdict(self, number: float | None) -> str:
        """ "ok", or what is wrong."""
        if number is None:
            return "missing"
        sign = -1 if self.better == "higher" else 1
        if self.value is not None and not self.reaches(number, self.value + sign * self.tolerance * abs(self.value)):
            return f"worse than {_short(self.value)} by more than {self.tolerance:.0%}"
        if self.value is None and self.target is not None and not self.reaches(number, self.target):
            return f"misses the target {_short(self.target)}"
        return "ok"

    def goal(self) -> str:
        """The target as the table shows it."""
        return "" if self.target is None else f"{'>=' if self.better == 'higher' else '<='} {_short(self.target)}"


def read_figures(path: Path) -> list[Figure]:
    """The figures that a baseline file names. Raises TypeError for a field that there is not."""
    return [Figure(key=key, **fields) for key, fields in json.loads(path.read_text()).items()]


def look_up(result: Mapping[str, Any], key: str) -> float | None:
    """The number at a dotted key; None if it is not there or is no number."""
    found: Any = result
    for part in key.split("."):
        found = found.get(part) if isinstance(found, Mapping) else None
    return float(found) if isinstance(found, int | float) and not isinstance(found, bool) else None


def table(folder: Path, headline_only: bool) -> list[str]:
    """Lines of the table over all baselines in `folder`; what was not run says so, and is left out of the short one."""
    lines = list(HEAD)
    for path in sorted((folder / "baselines").glob("*.json")):
        stored = folder / "results" / path.name
        result = json.loads(stored.read_text()) if stored.is_file() else None
        for figure in read_figures(path):
            if not headline_only or (figure.headline and result is not None):
                lines.append(_line(path.stem, figure, result))
    return lines if len(lines) > len(HEAD) else ["(no result is stored yet)"]


def _line(name: str, figure: Figure, result: Mapping[str, Any] | None) -> str:
    number = look_up(result, figure.key) if result is not None else None
    measured = "not run" if number is None else f"{_short(number)} {figure.unit}".strip()
    return f"| `{name}.py` | {figure.what} | {measured} | {figure.goal()} | {_where(result) if number is not None else ''} |"


def _where(result: Mapping[str, Any] | None) -> str:
    """Cores of the machine, its GPU if one was used, and whether other programs were busy on it."""
    if result is None:
        return ""
    cores, load = result.get("num_cores"), result.get("load_before", 0.0)
    parts = [str(result["gpu"])] if result.get("gpu") else [f"{cores} cores"] if cores else []
    return ", ".join([*parts, *(["busy machine"] if cores and load > cores else [])])


def _short(number: float) -> str:
    return f"{number:.4g}" if abs(number) < 1e5 else f"{number:,.0f}"


def replace_table(text: str, lines: list[str]) -> str:
    """The text with the table between its markers. Raises ValueError if they are not there, once each and in order."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"expected once each, in order: {BEGIN!r} and {END!r}")
    return "\n".join([before + begin, "", *lines, "", end + after])


def compare(path: Path, folder: Path) -> Iterator[tuple[Figure, float | None, str]]:
    """Each figure of the result `path`, whose file name says which benchmark it is of, and its verdict."""
    result = json.loads(path.read_text())
    for figure in read_figures(folder / "baselines" / path.name):
        number = look_up(result, figure.key)
        yield figure, number, figure.verdict(number)


def show(path: Path, folder: Path) -> bool:
    """Print the comparison; whether all is well."""
    rows = list(compare(path, folder))
    for figure, number, verdict in rows:
        shown = "-" if number is None else _short(number)
        print(f"{path.stem}.{figure.key} = {shown} {figure.unit}".rstrip() + f": {verdict}")
    return all(verdict == "ok" for _, _, verdict in rows)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    """The command line."""
    parser = ArgumentParser(description="Tables of benchmark figures, and comparison with baselines.")
    parser.add_argument("--check", action="store_true", help="change nothing; 1 if a table is out of date")
    parser.add_argument("--compare", nargs="+", type=Path, metavar="NEW.json", help="compare with baselines/NEW.json")
    args = parser.parse_args(arguments)
    folder = root / "benchmarks"
    if args.compare:
        shown = [show(path, folder) for path in args.compare]
        return int(not all(shown))
    stale = []
    for readme, headline_only in ((root / "README.md", True), (folder / "README.md", False)):
        text = readme.read_text()
        new = replace_table(text, table(folder, headline_only))
        if new != text:
            stale.append(readme)
            if not args.check:
                readme.write_text(new)
    print("\n".join(f"{path} {'is out of date' if args.check else 'rewritten'}" for path in stale) or "up to date")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
