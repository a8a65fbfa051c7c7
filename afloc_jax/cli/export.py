"""`afloc export`: a model folder in a format of other programs."""

from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.export.formats import FORMATS
from afloc_jax.extras import install

_FORMATS = "\n".join(f"{name:13s} {format.about}" for name, format in FORMATS.items())
EXAMPLE = (
    "afloc export runs/demo/model runs/demo/torch --format torch-module\n\n"
    f"{_FORMATS}\n\n"
    f"Each export holds check/check.py, which compares it with the outputs of afloc_jax. All formats but\n"
    f"safetensors and small need {install('export')}."
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument("destination", type=path_or_bucket, metavar="DEST", help="folder to write")
    command.add_argument(
        "--words",
        action="append",
        default=[],
        type=path_or_bucket,
        metavar="FILE",
        help="text whose words --format small keeps in the vocabulary; repeatable (default: all words)",
    )
    command.add_argument("--format", required=True, metavar="FORMAT", help="one of those listed below")


def run(given: Namespace) -> int:
    from afloc_jax.export.write import export_model

    written = export_model(given.model, given.destination, given.format, given.words)
    print(f"{given.format} in {written}; python {written}/check/check.py compares it with ours")
    return 0
