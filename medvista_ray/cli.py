"""The `medvista-ray` command: thin sub-commands over the library's own functions, the only module with prints.

Each sub-command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from medvista_ray import __version__, evaluate, train
from medvista_ray.command_line import exit_code
from medvista_ray.errors import RunFolderError, UserError

if TYPE_CHECKING:
    from medvista_ray.reports.episode_commands import Filters

SUMMARY_NAME = "summary.json"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and run its sub-command; the process's exit code (2 for a user's mistake)."""
    args = _parser().parse_args(argv)
    return exit_code(lambda: args.run(args))


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="medvista-ray", description="Train policies that think with medical images.")
    parser.add_argument("--version", action="version", version=f"medvista-ray {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    training = commands.add_parser("train", help="train a policy: python -m medvista_ray.train")
    train.add_options(training)
    training.set_defaults(run=train.run)
    evaluation = commands.add_parser("evaluate", help="score a run's policies: python -m medvista_ray.evaluate")
    evaluate.add_options(evaluation)
    evaluation.set_defaults(run=evaluate.run)
    summary = commands.add_parser("summary", help="print the summary of a run")
    summary.add_argument("run_dir", type=Path, metavar="RUN_DIR")
    summary.set_defaults(run=_print_summary)
    assets = commands.add_parser("assets", help="the real images, weights and texts that packages carry")
    _add_asset_commands(assets)
    _add_data_commands(commands.add_parser("data", help="public data sets in a folder: what is there, and scores on them"))
    _add_episode_commands(commands.add_parser("episodes", help="the trajectory log of a run, also while it goes on"))
    _add_check_commands(commands.add_parser("check", help="run a contributor's environment or tool and report every violation"))
    tools = commands.add_parser("tools", help="list the tools, or run one on a file of your own")
    _add_tool_commands(tools)
    return parser


def _add_episode_commands(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    listing = commands.add_parser("list", help="one line per episode")
    show = commands.add_parser("show", help="draw an episode as a picture")
    for command in (listing, show):
        command.add_argument("run_dir", type=Path, metavar="RUN")
        command.add_argument("--outcome", metavar="right|wrong|truncated|failed")
        command.add_argument("--tool", metavar="NAME", help="a tool that was called")
        command.add_argument("--error", metavar="E1..E6", help="an error code that occurred")
        command.add_argument("--arm", help='"train" or an arm of the evaluation')
        command.add_argument("--family", help="question family")
        command.add_argument("--task", metavar="ID", help="task id")
    listing.add_argument("--limit", type=int, default=50, metavar="N", help="lines to print")
    listing.set_defaults(run=_list_episodes)
    show.add_argument("--number", type=int, metavar="N", help="as `list` numbers them; default: the first that matches")
    show.add_argument("--out", type=Path, default=Path("episode.png"), metavar="FILE", help="PNG to write")
    show.set_defaults(run=_show_episode)
    compaction = commands.add_parser("compact", help="compress the log of a run that has ended")
    compaction.add_argument("run_dir", type=Path, metavar="RUN")
    compaction.set_defaults(run=_compact_episodes)


def _add_check_commands(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="env|tool")
    for kind, text in (("env", "an environment"), ("tool", "a tool")):
        command = commands.add_parser(kind, help=f'{text}, by registered name or "module:Class"')
        command.add_argument("name", metavar="NAME")
        command.set_defaults(run=_check, kind=kind)
        if kind == "tool":
            command.add_argument("--args", type=json.loads, metavar="JSON", help="valid arguments, if none can be made up")


def _add_tool_commands(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="every tool with its arguments").set_defaults(run=_list_tools)
    show = commands.add_parser("show", help="what a tool does, and the schema of its arguments")
    show.set_defaults(run=_show_tool)
    run = commands.add_parser("run", help="run one call; returned pictures are written as PNG")
    run.set_defaults(run=_run_tool)
    for command in (show, run):
        command.add_argument("name", metavar="NAME", help='registered name or "module:Class"')
    add = run.add_argument
    add("--image", type=Path, action="append", default=[], metavar="FILE", help="DICOM, PNG, NIfTI or NRRD; repeatable")
    add("--args", dest="arguments", default="{}", metavar="JSON", help="arguments, e.g. '{\"bbox\": [100, 100, 400, 400]}'")
    add("--backend", metavar="JSON", help='what computes, e.g. \'{"name": "clip", "weights": "FOLDER"}\'')
    add("--out", type=Path, default=Path("tool_result"), metavar="DIR", help="folder of the result (default: tool_result)")


def _add_asset_commands(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    actions: dict[str, tuple[str, Callable[[Namespace], int]]] = {
        "fetch": ("download, check and unpack what is missing", _fetch_assets),
        "list": ("name, state, licence and credit of each", _list_assets),
        "verify": ("check every unpacked file", _verify_assets),
    }
    for name, (text, run) in actions.items():
        command = commands.add_parser(name, help=text)
        if name != "list":
            command.add_argument("names", nargs="*", metavar="NAME", help="default: all")
        command.set_defaults(run=run)


def _add_data_commands(parser: ArgumentParser) -> None:
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    commands.add_parser("list", help="the sets, their files and licences").set_defaults(run=_list_data)
    check = commands.add_parser("check", help="what a folder holds, what is missing, what leaks between splits")
    check.add_argument("folder", type=Path, metavar="DIR")
    check.add_argument("--set", metavar="NAME", help="default: every set that is found")
    check.add_argument("--splits", choices=("clean", "published", "case"), default="clean", help="as bench.splits")
    check.add_argument("--no-pictures", action="store_true", help="open no picture; leaks by case alone")
    check.set_defaults(run=_check_data)
    score = commands.add_parser("score", help="score a file of answers (JSON lines: id, answer)")
    score.add_argument("folder", type=Path, metavar="DIR")
    score.add_argument("answers", type=Path, metavar="ANSWERS")
    score.add_argument("--set", metavar="NAME", required=True)
    score.add_argument("--split", choices=("train", "validation", "test"), default="test")
    score.add_argument("--judge-url", metavar="URL", help="OpenAI-compatible server: adds the judge's column, changes no other")
    score.add_argument("--judge-model", metavar="NAME", help="its model; the key is read from OPENAI_API_KEY")
    score.set_defaults(run=_score_data)
    for command in (check, score):
        command.add_argument("--json", type=Path, metavar="FILE", help="write the figures as JSON too")


def _list_data(_: Namespace) -> int:
    from medvista_ray.tasks.datasets.commands import list_command

    return list_command()


def _check_data(args: Namespace) -> int:
    from medvista_ray.tasks.datasets.commands import check_command

    return check_command(args.folder, args.set, args.splits, not args.no_pictures, args.json)


def _score_data(args: Namespace) -> int:
    from medvista_ray.tasks.datasets.commands import score_command
    from medvista_ray.tasks.judge import OpenAiJudge

    if (args.judge_url is None) != (args.judge_model is None):
        raise UserError("--judge-url and --judge-model go together")
    judge = OpenAiJudge(args.judge_url, args.judge_model) if args.judge_url else None
    return score_command(args.folder, args.answers, args.set, args.split, judge, args.json)


def _print_summary(args: Namespace) -> None:
    path: Path = args.run_dir / SUMMARY_NAME
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunFolderError(f"run folder {str(args.run_dir)!r} has no {SUMMARY_NAME}: no run ended there") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{str(path)!r} cannot be read: {error}") from error
    print(json.dumps(summary, indent=2))


def _filters(args: Namespace) -> Filters:
    from medvista_ray.reports.episode_commands import Filters

    return Filters(args.outcome, args.tool, args.error, args.arm, args.family, args.task)


def _list_episodes(args: Namespace) -> int:
    from medvista_ray.reports.episode_commands import list_command

    return list_command(args.run_dir, _filters(args), args.limit)


def _show_episode(args: Namespace) -> int:
    from medvista_ray.reports.episode_commands import show_command

    return show_command(args.run_dir, _filters(args), args.number, args.out)


def _compact_episodes(args: Namespace) -> int:
    from medvista_ray.reports.episode_commands import compact_command

    return compact_command(args.run_dir)


def _check(args: Namespace) -> int:
    from medvista_ray.envs.check_commands import check_command

    return check_command(args.kind, args.name, getattr(args, "args", None))


def _fetch_assets(args: Namespace) -> int:
    from medvista_ray.assets.commands import fetch_command

    return fetch_command(args.names)


def _list_assets(_: Namespace) -> int:
    from medvista_ray.assets.commands import list_command

    return list_command()


def _list_tools(_: Namespace) -> int:
    from medvista_ray.tools.commands import list_command

    return list_command()


def _show_tool(args: Namespace) -> int:
    from medvista_ray.tools.commands import show_command

    return show_command(args.name)


def _run_tool(args: Namespace) -> int:
    from medvista_ray.tools.commands import run_command

    return run_command(args.name, args.image, args.arguments, args.out, args.backend)


def _verify_assets(args: Namespace) -> int:
    from medvista_ray.assets.commands import verify_command

    return verify_command(args.names)


if __name__ == "__main__":
    sys.exit(main())
