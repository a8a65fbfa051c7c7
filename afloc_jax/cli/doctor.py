"""`afloc doctor`: versions, devices and extras of this installation, and what keeps JAX from a card that is there."""

import json
from argparse import Namespace

from afloc_jax.cli.parser import Parser

EXAMPLE = (
    "afloc doctor --json\n\n"
    "Lines that begin with ! say what should be changed, such as an NVIDIA card that JAX does not use; the exit\n"
    "status is then 1."
)


def add(command: Parser) -> None:
    command.add_argument("--json", action="store_true", help="print JSON instead of lines")


def run(given: Namespace) -> int:
    from afloc_jax.installation import examine

    found = examine()
    print(json.dumps(found.plain(), indent=2) if given.json else "\n".join(found.lines()))
    return int(bool(found.remarks))
