"""`afloc verify`: whether a model or a working directory is as it was saved."""

import json
from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser

EXAMPLE = "afloc verify runs/demo"


def add(command: Parser) -> None:
    command.add_argument(
        "folder", type=path_or_bucket, metavar="MODEL|WORKDIR", help="model folder, or working directory of a run"
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(given: Namespace) -> int:
    from dataclasses import asdict

    from afloc_jax.training.verify import verify

    found = verify(given.folder)
    if given.json:
        print(json.dumps([asdict(verdict) for verdict in found], indent=2))
    else:
        print("\n".join(verdict.line for verdict in found) or f"{given.folder}: nothing was saved yet")
    return int(any(verdict.state == "damaged" for verdict in found))
