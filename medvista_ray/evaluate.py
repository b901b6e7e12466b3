"""`python -m medvista_ray.evaluate`: the composition root of evaluation. Scores the policies of a finished run again.

Parses, validates, then hands over to main_job, which alone imports the engine and Ray.
"""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Sequence

from medvista_ray.command_line import add_config_options, config_from, exit_code


def add_options(parser: ArgumentParser) -> None:
    """The options of this command, also those of `medvista-ray evaluate`."""
    add_config_options(parser)


def run(args: Namespace) -> None:
    """Evaluate as `args` say. Raises UserError."""
    config = config_from(args)
    from medvista_ray.main_job import run_evaluation

    run_evaluation(config)


def main(argv: Sequence[str] | None = None) -> int:
    """Parse `argv` and evaluate; the process's exit code."""
    parser = ArgumentParser(
        prog="python -m medvista_ray.evaluate", description="Score the policies that a run left in its output folder."
    )
    add_options(parser)
    args = parser.parse_args(argv)
    return exit_code(lambda: run(args))


if __name__ == "__main__":
    sys.exit(main())
