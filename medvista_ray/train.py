"""`python -m medvista_ray.train`: the composition root of training. Config in, run folder out.

Parses, validates, then hands over to main_job, which alone imports the engine, the learner and Ray.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from medvista_ray.command_line import add_config_options, config_from, exit_code


def add_options(parser: ArgumentParser) -> None:
    """The options of this command, also those of `medvista-ray train`."""
    add_config_options(parser)
    parser.add_argument("--resume", action="store_true", help="continue from the output folder's last checkpoint")


def run(args: Namespace) -> None:
    """Train as `args` say. Raises UserError."""
    config = config_from(args)
    from medvista_ray.main_job import run_training

    run_training(config, resume=args.resume)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and train; the process's exit code."""
    parser = ArgumentParser(prog="python -m medvista_ray.train", description="Train a tool-using policy.")
    add_options(parser)
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
