"""Does the tool environment take any input? The protocol's parser, every tool's arguments, odd pictures, broken files.

    python benchmarks/fuzz.py --json fuzz.json [--num-inputs 100000] [--num-files 20000] [--only measure parser ...]

Inputs are hypothesis's (`fuzz_inputs`), generated in batches. Every one goes through the real checks; a call that passes
them also runs the real tool on odd pictures, until the tool has run `--num-runs` times and has used `--run-s` seconds of
CPU. Exit status 1 on an exception, an E5, an ill-formed outcome or a call over the time limit of a served tool, in time of
the processor (all threads), so that what else the machine does has no part in it.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
import warnings
from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from hypothesis import HealthCheck, Phase, given, seed, settings

from benchmarks import fuzz_inputs as inputs
from benchmarks.harness import machine, write_figures
from medvista_ray.assets.user_files import open_image
from medvista_ray.errors import ImageError
from medvista_ray.protocol import parse, render_turn
from medvista_ray.protocol.parser import ParsedTurn
from medvista_ray.tools.base import Tool, ToolContext
from medvista_ray.tools.catalog import TOOLS, load_tools
from medvista_ray.tools.execution import check, execute
from medvista_ray.tools.settings import ToolServing
from medvista_ray.types import ErrorCode, MedImage, ToolOutcome

BATCH = 50
MAX_MESSAGE, MAX_SIDE = 500, 2048
"""Characters of a refusal, and pixels of a returned picture's side, at most."""
MAX_FAULTS = 10
"""Faults that are written out, of each target."""
PARSER_LIMIT_S = 1.0


class Tally:
    """What became of the inputs of one target."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s, self.slowest_s, self.slowest_cpu_s, self.run_s = limit_s, 0.0, 0.0, 0.0
        self.num_inputs = self.num_run = 0
        self.outcomes, self.counts = Counter[str](), Counter[str]()
        self.faults: list[str] = []
        self._start = time.perf_counter()

    def add(self, drawn: Any, call: Callable[[], str], wrong: Callable[[], str]) -> None:
        """Count one input: `call` names the outcome, `wrong` says what is ill-formed about it ("" if nothing)."""
        self.num_inputs += 1
        start, cpu_start = time.perf_counter(), time.process_time()
        try:
            outcome = call()
        except Exception as error:  # fault boundary: an exception is what this script looks for
            outcome = self._fault("exception", drawn, f"{type(error).__name__}: {error}")
        took_s = time.process_time() - cpu_start
        self.slowest_s, self.slowest_cpu_s = max(self.slowest_s, time.perf_counter() - start), max(self.slowest_cpu_s, took_s)
        self.outcomes[outcome] += 1
        if took_s > self.limit_s:
            self._fault("slow", drawn, f"{took_s:.1f} s")
        if outcome != "exception" and (words := wrong()):
            self._fault("E5" if outcome == "E5" else "ill_formed", drawn, words)

    def _fault(self, kind: str, drawn: Any, words: str) -> str:
        self.counts[kind] += 1
        if len(self.faults) < MAX_FAULTS:
            self.faults.append(f"{kind}: {words}; input {drawn!r}"[:MAX_MESSAGE])
        return kind

    @property
    def num_faults(self) -> int:
        """All kinds together."""
        return sum(self.counts.values())

    def figures(self) -> dict[str, Any]:
        """For the JSON."""
        return {
            "num_inputs": self.num_inputs,
            "outcomes": dict(sorted(self.outcomes.items())),
            "num_run": self.num_run,
            "num_exceptions": self.counts["exception"],
            "num_e5": self.counts["E5"],
            "num_ill_formed": self.counts["ill_formed"],
            "num_slow": self.counts["slow"],
            "slowest_s": round(self.slowest_s, 3),
            "slowest_cpu_s": round(self.slowest_cpu_s, 3),
            "limit_s": self.limit_s,
            "run_cpu_s": round(self.run_s, 1),
            "total_s": round(time.perf_counter() - self._start, 1),
            "faults": self.faults,
        }


def generate(strategy: Any, number: int, random_seed: int, take: Callable[[Any], None]) -> None:
    """Give `number` generated inputs to `take`, a batch being one example of hypothesis."""

    @seed(random_seed)
    @settings(
        max_examples=-(-number // BATCH),
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(inputs.batches(strategy, BATCH))
    def each(batch: tuple[Any, ...]) -> None:
        for drawn in batch:
            take(drawn)

    each()


def fuzz_parser(options: Namespace) -> Tally:
    """Every turn is a call, an answer or an error with a reason; what was read is read again from its own rendering."""
    tally = Tally(PARSER_LIMIT_S)

    def take(text: str) -> None:
        turn: list[ParsedTurn] = []

        def call() -> str:
            turn.append(parse(text))
            return str(turn[0].error) if turn[0].error else "call" if turn[0].call else "answer"

        tally.add(text, call, lambda: wrong_turn(turn[0]))

    generate(inputs.turns, options.num_inputs, options.seed, take)
    tally.num_run = tally.num_inputs
    return tally


def wrong_turn(turn: ParsedTurn) -> str:
    """What is ill-formed about a parsed turn."""
    if [turn.call is not None, turn.answer is not None, turn.error is not None].count(True) != 1:
        return "not exactly one of call, answer and error"
    if turn.error is not None:
        return "" if 0 < len(turn.message) < MAX_MESSAGE else f"a message of {len(turn.message)} characters"
    action = turn.call or turn.answer or ""
    again = parse(render_turn(turn.think, action))
    return "" if (again.think, again.call or again.answer) == (turn.think, action) else "is not read back as it was read"


def fuzz_tool(tool: Tool, options: Namespace) -> Tally:
    """Every call of a tool is a result or a refusal in words."""
    tally, context = Tally(ToolServing().limit_s(tool.name)), inputs.context()

    def take(drawn: Any) -> None:
        is_run = tally.num_run < options.num_runs or tally.run_s < options.run_s
        told: list[ToolOutcome] = []
        tally.add(drawn, lambda: call_tool(tool, drawn, context, tally if is_run else None, told), lambda: _first_fault(told))

    generate(inputs.arguments(type(tool)), options.num_inputs, options.seed, take)
    return tally


def call_tool(tool: Tool, drawn: Any, context: ToolContext, tally: Tally | None, told: list[ToolOutcome]) -> str:
    """The code of the outcome, which is put into `told`; without a tally what is valid is not run."""
    checked = check(type(tool), drawn, context)
    if isinstance(checked, ToolOutcome):
        told.append(checked)
        return str(checked.error)
    if tally is None:
        return "valid, not run"
    start = time.process_time()
    told.append(execute(tool, drawn, context))
    tally.run_s += time.process_time() - start
    tally.num_run += 1
    return str(told[0].error or "ok")


def _first_fault(told: list[ToolOutcome]) -> str:
    return wrong_outcome(told[0]) if told else ""


def wrong_outcome(outcome: ToolOutcome) -> str:
    """What is ill-formed about an outcome; an E5 is a tool's bug."""
    result = outcome.result
    if (result is None) != (outcome.error is not None):
        return "not exactly one of result and error"
    if result is None:
        is_worded = 0 < len(outcome.message) < MAX_MESSAGE
        return outcome.message if outcome.error == ErrorCode.E5 else "" if is_worded else f"message {outcome.message!r}"
    if any(not 0 < min(image.size) <= max(image.size) <= MAX_SIDE or image.display().dtype != "uint8" for image in result.images):
        return "a picture of no or of too large a size"
    return "" if inputs.is_json(dict(result.data)) else "data is no JSON"


def fuzz_pictures(tool: Tool, calls: list[dict[str, Any]]) -> Tally:
    """Each odd picture, and a huge one, goes through the tool with each of `calls`."""
    tally = Tally(ToolServing().limit_s(tool.name))
    for number, image in [*inputs.pictures().items(), (-1, inputs.huge())]:
        context = ToolContext({0: image}, {})
        for arguments in calls:
            told: list[ToolOutcome] = []

            def call(arguments: dict[str, Any] = arguments, told: list[ToolOutcome] = told, on: ToolContext = context) -> str:
                return call_tool(tool, arguments, on, tally, told)

            tally.add((number, arguments), call, lambda told=told: _first_fault(told))
    return tally


def fuzz_files(options: Namespace) -> Tally:
    """A whole or broken file is a picture of finite numbers or an ImageError."""
    tally = Tally(ToolServing().timeout_s)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # parsers warn of what is broken here on purpose

        def take(drawn: Any) -> None:
            path = Path(folder) / drawn[0]
            path.write_bytes(inputs.broken(*drawn))
            opened: list[MedImage] = []
            tally.add(drawn, lambda: open_file(path, opened), lambda: wrong_picture(opened[0]) if opened else "")

        generate(inputs.broken_files, options.num_files, options.seed, take)
    tally.num_run = tally.num_inputs
    return tally


def open_file(path: Path, opened: list[MedImage]) -> str:
    """Whether the file could be opened; its picture is put into `opened`."""
    try:
        opened.append(open_image(path))
    except ImageError:
        return "refused"
    return "opened"


def wrong_picture(image: MedImage) -> str:
    """What is wrong with an opened picture."""
    if min(image.size) < 1 or (image.pixels.ndim != 2 and image.pixels.shape[2:] != (3,)):
        return f"shape {image.pixels.shape}"
    shown = image.display()
    return "" if shown.dtype == "uint8" and shown.shape == (*image.size, 3) else "does not display"


def targets(options: Namespace) -> dict[str, Callable[[], Tally]]:
    """What can be fuzzed, by name."""
    found: dict[str, Callable[[], Tally]] = {"parser": lambda: fuzz_parser(options)}
    for name in TOOLS.names():
        found[name] = lambda name=name: fuzz_tool(ready(name), options)
    for name in TOOLS.names():
        if calls := inputs.picture_calls(load_tools([name])[0]):
            found[f"pictures.{name}"] = lambda name=name, calls=calls: fuzz_pictures(ready(name), calls)
    return found | {"files": lambda: fuzz_files(options)}


def ready(name: str) -> Tool:
    """A loaded tool."""
    tool = load_tools([name])[0]()
    tool.setup()
    return tool


def options_of(arguments: list[str] | None) -> Namespace:
    """The command line."""
    parser = ArgumentParser(description="Generated inputs for the parser, the tools and the readers of files.")
    parser.add_argument("--json", type=Path, required=True, metavar="FILE", help="file for the figures")
    parser.add_argument("--num-inputs", type=int, default=100_000, help="turns, and arguments of each tool")
    parser.add_argument("--num-files", type=int, default=20_000, help="files")
    parser.add_argument(
        "--num-runs", type=int, default=500, help="valid calls that each tool runs at least, if there are as many"
    )
    parser.add_argument("--run-s", type=float, default=20.0, help="seconds of CPU that each tool may use for more")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="only these targets")
    options = parser.parse_args(arguments)
    if unknown := set(options.only) - targets(options).keys():
        parser.error(f"--only: no target {sorted(unknown)}; there are {', '.join(targets(options))}")
    return options


@contextmanager
def _quiet(*names: str) -> Generator[None]:
    """These loggers say nothing within it."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def main(arguments: list[str] | None = None) -> int:
    """Run the targets; 1 on any fault."""
    options, about = options_of(arguments), machine()
    tallies: dict[str, Tally] = {}
    with _quiet("medvista_ray", "nibabel.global"):  # an E5 is counted here, with its input; broken files are meant to be
        for name, run in targets(options).items():
            if not options.only or name in options.only:
                tallies[name] = run()
                print(name, {key: value for key, value in tallies[name].figures().items() if value}, flush=True)
    generated = [tally for name, tally in tallies.items() if name == "parser" or name in TOOLS.names()]
    summary = {
        "num_targets": len(tallies),
        "num_inputs": sum(tally.num_inputs for tally in tallies.values()),
        "num_inputs_each_min": min((tally.num_inputs for tally in generated), default=0),
        "num_run_each_min": min((tally.num_run for tally in generated), default=0),
        "num_faults": sum(tally.num_faults for tally in tallies.values()),
        "slowest_s": round(max(tally.slowest_s for tally in tallies.values()), 3),
        "slowest_cpu_s": round(max(tally.slowest_cpu_s for tally in tallies.values()), 3),
        "cpu_s": round(time.process_time(), 1),
    }
    figures = {name: tally.figures() for name, tally in tallies.items()}
    settings = {"num_runs": options.num_runs, "run_s": options.run_s, "seed": options.seed}
    write_figures(options.json, about | {"settings": settings, "summary": summary, "targets": figures})
    return int(summary["num_faults"] > 0)


if __name__ == "__main__":
    sys.exit(main())
