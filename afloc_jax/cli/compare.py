"""`afloc compare`: paired differences, significance tests and corrections for results on the same samples."""

import argparse
from argparse import Namespace
from typing import TYPE_CHECKING

from afloc_jax.cli.arguments import path, path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.settings import given_options, options_of
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.settings import TaskSettings

if TYPE_CHECKING:
    from afloc_jax.evaluation.comparison.failure import Failure

OPTIONS = options_of(TaskSettings, ("bootstrap", "interval", "unit"))

EXAMPLE = "afloc compare scores_a scores_b --out comparison"


def add(command: Parser) -> None:
    command.add_argument(
        "results",
        type=path_or_bucket,
        nargs="+",
        metavar="RESULT",
        help="two result folders of a task (with per_sample.csv), or tables of other systems: CSV with system, id, "
        "image, patient, category, metric, threshold, value, or label, probability instead of metric, value "
        "(docs/comparison.md); a folder beside tables is one more system",
    )
    command.add_argument(
        "--out",
        type=path,
        default="comparison",
        metavar="DIR",
        help="where comparison.csv, .json, .md and .html go (default: %(default)s)",
    )
    command.add_argument(
        "--against",
        default="",
        metavar="SYSTEM",
        help="the system from which the differences of the others are taken (default: the first of the tables; of two "
        "folders the second)",
    )
    command.add_argument(
        "--failure",
        action="append",
        type=_failure,
        default=[],
        metavar="'METRIC<LIMIT'",
        help="count samples that fail, such as 'iou<0.1', and test the counts; repeatable",
    )
    for option in OPTIONS:
        option.add(command)


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.comparison.compare import compare
    from afloc_jax.evaluation.comparison.systems import compare_systems, is_table

    bootstrap = TaskSettings.read(given_options(given, OPTIONS)).resampling
    two_folders = len(given.results) == 2 and not any(map(is_table, given.results))
    if two_folders and not given.against:
        first, second = given.results
        print(compare(first, second, given.out, bootstrap, given.failure).to_markdown())
    else:
        print(compare_systems(given.results, given.out, bootstrap, given.against, given.failure).to_markdown())
    print(f"results in {given.out}")
    return 0


def _failure(text: str) -> "Failure":
    from afloc_jax.evaluation.comparison.failure import Failure

    try:
        return Failure.parse(text)
    except UsageError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
