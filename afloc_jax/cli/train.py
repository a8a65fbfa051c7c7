"""`afloc train`: a training run, or a run that goes on. Its flags are read by `launching`, as those of launch.py."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from afloc_jax.cli.parser import Parser
from afloc_jax.cli.training_flags import CONFIG, FLAGS

EXAMPLE = (
    "afloc train --config=demo --workdir=runs/demo\n\n"
    "--config names a recipe that comes with the program, or a config file; --config.KEY=VALUE changes a value of it,\n"
    "as in --config.optimizer.lr=1e-4. The same command again resumes a run; a finished run says so. The exit status\n"
    "is 0 for a finished run, 1 for failed work, 2 for a wrong call, 3 for a loss that is not finite, and 143 or 130\n"
    "if SIGTERM or Ctrl-C stopped the run, after it saved a checkpoint."
)


PASSED_ON = True  # the words after the command are not read by argparse


def add(command: Parser) -> None:
    """Describes the flags, for --help and for completion."""
    for flag in (CONFIG, *FLAGS):
        if flag.name == "debug":
            continue  # every command has it
        about = f"{flag.about[0].lower()}{flag.about[1:].rstrip('.')}"
        if flag.kind is bool:
            command.add_argument(f"--{flag.name}", action="store_true", help=about)
        else:
            command.add_argument(
                f"--{flag.name}", type=flag.kind, default=flag.default, metavar=flag.metavar, help=about
            )


def run(given: Namespace) -> int:
    return launched("train", given.passed_on)


def launched(name: str, flags: Sequence[str]) -> int:
    """Trains or sweeps; returns the exit status, or ends the process where a signal stopped the run."""
    from afloc_jax.cli import launching
    from afloc_jax.training import program

    # The package is found by its path: the current folder, where it may lie as well, is not looked into.
    program.started_as(f"afloc {name}", sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), "train")
    return launching.main([f"afloc {name}", *flags], EXAMPLE)
