"""`afloc train`: a training run, or a run that goes on. Its flags are read by `launching`, as those of launch.py."""

import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from afloc_jax.cli.parser import Parser

EXAMPLE = (
    "afloc train --config=demo --workdir=runs/demo\n\n"
    "--config names a recipe that comes with the program, or a config file; --config.KEY=VALUE changes a value of it,\n"
    "as in --config.optimizer.lr=1e-4. The same command again resumes a run; a finished run says so. The exit status\n"
    "is 0 for a finished run, 1 for failed work, 2 for a wrong call, 3 for a loss that is not finite, and 143 or 130\n"
    "if SIGTERM or Ctrl-C stopped the run, after it saved a checkpoint."
)


@dataclass(frozen=True)
class Flag:
    """A flag that `train`, `sweep` and launch.py take.

    Attributes:
        name: without hyphens.
        kind: the type of its value; a switch has none.
        about: the help text.
        default: None for a flag of text that may be left out.
    """

    name: str
    kind: type[str] | type[int] | type[bool]
    about: str
    default: int | bool | None = None


CONFIG = Flag("config", str, "Config file, or the name of a recipe such as demo; --config.KEY=VALUE changes a value.")
FLAGS = (
    Flag("workdir", str, "Working directory: the folder of all files of the run. The same folder resumes."),
    Flag("sweep", str, "Sweep file, a generator of overrides, or the name of a sweep such as levels."),
    Flag("dry_run", bool, "Check the config (and print the table of a sweep), then stop.", False),
    Flag("profile", str, "START:STOP: trace the steps START to STOP - 1, from 0, into WORKDIR/profile, for XProf."),
    Flag("replay", str, "A folder of WORKDIR/nonfinite: compute that step again, to find the record and the layer."),
    Flag("from_scratch", bool, "Start at step 0 where checkpoints were saved and none of them is intact.", False),
    Flag("max_restarts", int, "Start again after a crash, at most so often without a new checkpoint.", 0),
    Flag("exclude_words", str, "File of words, such as names, that a learned vocabulary must not hold."),
    Flag("distributed", bool, "Run as one of several processes, which connect first.", False),
    Flag("coordinator", str, "Host:port of process 0, if no cluster provides it."),
    Flag("processes", int, "Number of processes, if no cluster provides it."),
    Flag("process", int, "Index of this process, from 0."),
    Flag("debug", bool, "Show tracebacks and the log lines of libraries.", False),
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
            command.add_argument(f"--{flag.name}", type=flag.kind, default=flag.default, help=about)


def run(given: Namespace) -> int:
    return launched("train", given.passed_on)


def launched(name: str, flags: Sequence[str]) -> int:
    """Trains or sweeps; returns the exit status, or ends the process where a signal stopped the run."""
    from afloc_jax.cli import launching
    from afloc_jax.training import program

    # The package is found by its path: the current folder, where it may lie as well, is not looked into.
    program.started_as(f"afloc {name}", sys.executable, "-P", str(Path(__file__).parents[1] / "__main__.py"), "train")
    return launching.main([f"afloc {name}", *flags], EXAMPLE)
