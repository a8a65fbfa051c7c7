"""`afloc retrieve`: the images of a folder that fit a text best, or the texts of a file that fit an image best."""

import sys
from argparse import Namespace

from afloc_jax.cli.arguments import add_compatible, add_strict, count, path, path_or_bucket
from afloc_jax.cli.parser import Parser

EXAMPLE = (
    'afloc retrieve runs/demo/model --images chests --query "small left pleural effusion" --top 5\n'
    "  afloc retrieve runs/demo/model --images chests --texts phrases.txt"
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument("--images", type=path, required=True, metavar="DIR", help="folder of images, or one image")
    command.add_argument(
        "--query", action="append", default=[], metavar="TEXT", help="find images for this text; repeatable"
    )
    command.add_argument("--texts", type=path, metavar="FILE", help="find texts in this file, one a line, per image")
    command.add_argument("--top", type=count, default=5, metavar="K", help="results per query (default: %(default)s)")
    command.add_argument("--out", type=path, metavar="FILE.csv", help="also write the results as a table")
    add_compatible(command)
    add_strict(command)


def run(given: Namespace) -> int:
    from afloc_jax.inference.retrieve import retrieve_files

    answers, failed = retrieve_files(
        given.model, given.images, given.query, given.texts, given.top, given.out, given.compatible, given.strict
    )
    for answer in answers:
        if answer.rank == 1:
            print(answer.query)
        print(f"  {answer.rank:3d}  {answer.similarity:6.3f}  {answer.found}")
    if failed:
        lines = "1 image" if len(failed) == 1 else f"{len(failed)} images"
        print(f"afloc: {lines} could not be read, and left out", file=sys.stderr)
    return 1 if failed else 0
