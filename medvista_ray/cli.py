"""The `medvista-ray` command: thin sub-commands over the library's own functions, the only module with prints.

Each sub-command imports what it needs when it runs, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from pathlib import Path

from medvista_ray import __version__, evaluate, train
from medvista_ray.command_line import exit_code
from medvista_ray.errors import RunFolderError

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
    tools = commands.add_parser("tools", help="list the tools, or run one on a file of your own")
    _add_tool_commands(tools)
    return parser


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


def _print_summary(args: Namespace) -> None:
    path: Path = args.run_dir / SUMMARY_NAME
    try:
        summary = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunFolderError(f"run folder {str(args.run_dir)!r} has no {SUMMARY_NAME}: no run ended there") from error
    except (OSError, ValueError) as error:
        raise RunFolderError(f"{str(path)!r} cannot be read: {error}") from error
    print(json.dumps(summary, indent=2))


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
