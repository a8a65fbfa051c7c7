"""`afloc report`: the report page of a run or of an evaluation, written again from its files."""

from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser

EXAMPLE = "afloc report runs/demo"


def add(command: Parser) -> None:
    command.add_argument(
        "workdir", type=path_or_bucket, metavar="WORKDIR", help="working directory of a run, or folder of results"
    )


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.page import write_report

    print(write_report(given.workdir))
    return 0
