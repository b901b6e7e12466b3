"""What the commands share: the options that make a TrainConfig, and how a user's mistake ends a command.

Used by train.py, evaluate.py and cli.py. Invariant: imports nothing heavier than the configuration, so that `--help`
and a typo answer in under a second.
"""

from __future__ import annotations

import json
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from pathlib import Path

from medvista_ray.config import TrainConfig, load_config
from medvista_ray.errors import UserError

EXIT_USER_ERROR = 2
"""As argparse's own: the command was given something wrong."""


def add_config_options(parser: ArgumentParser) -> None:
    """Add --config, --set, --output-dir and --seed."""
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="YAML file of what differs from the defaults")
    add("--set", dest="overrides", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="grpo.num_steps=40")
    add("--output-dir", type=Path, metavar="DIR", help="folder of the run; short for --set output_dir=DIR")
    add("--seed", type=int, metavar="N", help="short for --set seed=N")


def config_from(args: Namespace) -> TrainConfig:
    """The configuration that the options of `add_config_options` describe; named options win over --set.

    Raises ConfigError.
    """
    overrides: list[str] = [*args.overrides]
    if args.output_dir is not None:
        overrides.append(f"output_dir={json.dumps(str(args.output_dir))}")  # quoted: a folder may be called 2026
    if args.seed is not None:
        overrides.append(f"seed={args.seed}")
    return load_config(args.config, overrides)


def exit_code(command: Callable[[], int | None]) -> int:
    """Run `command`: its own code, or 2 with one line on stderr for a user's mistake. Bugs keep their traceback."""
    try:
        return command() or 0
    except UserError as error:
        sys.stderr.write(f"medvista-ray: error: {' '.join(str(error).split())}\n")
        return EXIT_USER_ERROR
