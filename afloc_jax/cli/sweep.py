"""`afloc sweep`: a training run for each choice of settings of a sweep file."""

from argparse import Namespace

from afloc_jax.cli.train import PASSED_ON, add, launched
from afloc_jax.errors import UsageError

__all__ = ["EXAMPLE", "PASSED_ON", "add", "run"]

EXAMPLE = (
    "afloc sweep --config=demo --sweep=levels --workdir=runs/levels --dry_run\n\n"
    "--sweep names a sweep that comes with the program, or a sweep file (docs/training.md). The same command again\n"
    "resumes a sweep. Other flags are those of afloc train."
)


def run(given: Namespace) -> int:
    if not any(word.split("=")[0].lstrip("-") == "sweep" for word in given.passed_on):
        raise UsageError("--sweep is missing, e.g. --sweep=levels; one run alone is afloc train")
    return launched("sweep", given.passed_on)
