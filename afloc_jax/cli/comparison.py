"""Commands that compare: compare."""

import argparse
from pathlib import Path

from afloc_jax.cli.arguments import add_bootstrap, add_command, bootstrap_of


def add_compare(commands) -> None:
    command = add_command(
        commands,
        "compare",
        "two results on the same samples: paired differences, tests, corrections",
        "afloc compare scores_a scores_b --out comparison",
        _run_compare,
    )
    command.add_argument("a", type=Path, metavar="A", help="result folder with per_sample.csv")
    command.add_argument("b", type=Path, metavar="B", help="another one of the same kind")
    command.add_argument(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="where comparison.csv, .json and .md go (default: %(default)s)",
    )
    add_bootstrap(command)


def _run_compare(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.comparison import compare, to_markdown

    print(to_markdown(compare(given.a, given.b, given.out, bootstrap_of(given))))
    print(f"results in {given.out}")
    return 0
