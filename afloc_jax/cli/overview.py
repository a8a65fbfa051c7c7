"""`afloc overview`: a page about prepared records: their contents, and leaks between their splits."""

from argparse import Namespace
from typing import TYPE_CHECKING

from afloc_jax.cli.arguments import add_builder, path
from afloc_jax.cli.parser import Parser

if TYPE_CHECKING:
    from afloc_jax.files import Path
    from data_pipelines.prepared import Prepared

EXAMPLE = "afloc overview open_i --data data --out open_i.html"


def add(command: Parser) -> None:
    command.add_argument("name", metavar="NAME", help="a prepared data set")
    command.add_argument("--data", type=path, required=True, metavar="DIR", help="folder of prepared records")
    command.add_argument("--out", type=path, required=True, metavar="FILE", help="the HTML page")
    add_builder(command)


def run(given: Namespace) -> int:
    from data_pipelines.prepared import open_prepared

    print_overview(given.out, given.name, open_prepared(given.name, given.data, dict(given.builder)))
    return 0


def print_overview(page: "Path", name: str, prepared: "Prepared") -> None:
    """Writes the page and prints one line about it."""
    from data_pipelines.overview import write_overview

    overview = write_overview(page, name, prepared.sources(), prepared.report)
    counts = ", ".join(f"{split} {count}" for split, count in overview.records.items())
    texts = sum(overview.texts_across.values())
    shared = f"; {texts} long reports have a near-identical one in another split" if texts else ""
    print(f"{page}: {counts}; {'LEAKS between splits' if overview.leaks else 'no leak between splits'}{shared}")
