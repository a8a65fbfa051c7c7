"""`afloc compare`: paired differences, significance tests and corrections for two results on the same samples."""

from argparse import Namespace

from afloc_jax.cli.arguments import path, path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.settings import given_options, options_of
from afloc_jax.evaluation.settings import TaskSettings

OPTIONS = options_of(TaskSettings, ("bootstrap", "interval", "unit"))

EXAMPLE = "afloc compare scores_a scores_b --out comparison"


def add(command: Parser) -> None:
    command.add_argument("a", type=path_or_bucket, metavar="A", help="result folder with per_sample.csv")
    command.add_argument("b", type=path_or_bucket, metavar="B", help="another result folder of the same task")
    command.add_argument(
        "--out",
        type=path,
        default="comparison",
        metavar="DIR",
        help="where comparison.csv, .json and .md go (default: %(default)s)",
    )
    for option in OPTIONS:
        option.add(command)


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.comparison.compare import compare

    settings = TaskSettings.read(given_options(given, OPTIONS))
    print(compare(given.a, given.b, given.out, settings.resampling).to_markdown())
    print(f"results in {given.out}")
    return 0
