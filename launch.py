"""Train AFLoc, or sweep over settings.

    python launch.py --config=configs/demo.py --workdir=runs/demo [--config.optimizer.lr=1e-4 ...]
    python launch.py --config=configs/afloc.py --sweep=configs/sweeps/levels.py --workdir=runs/levels [--dry_run]
    python launch.py --replay=runs/demo/nonfinite/step_7

The same command again resumes a run; a finished run says so. The exit status is 0 for a finished run, 1 for failed
work, 2 for a wrong call, 3 for a loss that is not finite, and 143 or 130 if SIGTERM or Ctrl-C stopped the run, after it
saved a checkpoint. With --max_restarts the command starts itself again after a crash.

`afloc train` and `afloc sweep` are the same where the package is installed.
"""

import sys
from pathlib import Path

from afloc_jax.cli import launching
from afloc_jax.cli.launching import parse
from afloc_jax.training import program

__all__ = ["main", "parse"]


def main(arguments: list[str]) -> int:
    """Trains or sweeps as the command line says, whose first word is the program; returns the exit status."""
    program.started_as("launch.py", sys.executable, str(Path(__file__).resolve()))
    return launching.main(arguments, __doc__)


if __name__ == "__main__":
    launching.leave_with(main(sys.argv))
