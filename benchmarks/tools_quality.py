"""How good each tool is, on real pictures with independent truth:

    python benchmarks/tools_quality.py --json quality.json [--only read_text ...]

One line a tool in CHECKS, one function a tool in `tools_quality_checks`: it returns figures, and may draw good and bad
cases, which are written beside the JSON.
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import benchmarks.tools_quality_checks as checks
from benchmarks.harness import machine, write_figures
from benchmarks.tools_quality_pictures import Album

CHECKS = {
    "segment_medical": checks.segment_medical,
    "measure": checks.measure,
    "read_text": checks.read_text,
    "classify": checks.classify,
    "detect_findings": checks.detect_findings,
    "search_text": checks.search_text,
    "lookup_concept": checks.lookup_concept,
    "similar_cases": checks.similar_cases,
}


def main() -> int:
    """Run the checks; the JSON goes to --json and to the screen."""
    parser = ArgumentParser(description="Quality of each tool on real pictures with independent truth.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE")
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="TOOL", help="default: all")
    args = parser.parse_args()
    figures: dict[str, Any] = machine()
    for name in args.only:
        start = time.perf_counter()
        figures[name] = CHECKS[name](Album(args.json.parent / f"{args.json.stem}_pictures", name))
        figures[name]["duration_s"] = round(time.perf_counter() - start, 1)
        print(name, json.dumps(figures[name]), flush=True)
    write_figures(args.json, figures)
    return 0


if __name__ == "__main__":
    sys.exit(main())
