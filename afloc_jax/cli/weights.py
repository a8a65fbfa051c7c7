"""Commands that exchange weights with other programs: import, export."""

import argparse
from pathlib import Path

from afloc_jax.cli.arguments import add_command
from afloc_jax.export.formats import FORMATS


def add_import(commands) -> None:
    command = add_command(
        commands,
        "import",
        "published checkpoints, or pretrained parts, to a model folder",
        "afloc import afloc.ckpt runs/published --tokenizer Bio_ClinicalBERT\n"
        "  afloc import resnet50.pth Bio_ClinicalBERT runs/start\n\n"
        "SOURCE: a checkpoint of the published AFLoc or of GLoRIA, a torchvision or timm ResNet or DenseNet (.pth or\n"
        ".safetensors), a Hugging Face BERT folder or hub name; several parts together make one model. No code in a\n"
        "file is ever run. MODEL is the folder to write.",
        _run_import,
    )
    command.add_argument(
        "sources", nargs="+", metavar="SOURCE", help="file, folder or hub name; what it is, is found out"
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder to write")
    command.add_argument(
        "--tokenizer", metavar="DIR", help="folder with vocab.txt or tokenizer.json, where no source holds one"
    )
    command.add_argument(
        "--seed", type=int, default=1, help="of the values that no source holds (default: %(default)s)"
    )


def add_export(commands) -> None:
    formats = "\n".join(f"{name:13s} {format.about}" for name, format in FORMATS.items())
    command = add_command(
        commands,
        "export",
        "a model folder for other programs",
        "afloc export runs/demo/model runs/demo/torch --format torch-module\n\n"
        f"{formats}\n\n"
        "Each export holds check/check.py, which compares it with our outputs. All but safetensors need\n"
        "pip install -r requirements-export.txt.",
        _run_export,
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    command.add_argument("destination", type=Path, metavar="DEST", help="folder to write")
    command.add_argument("--format", required=True, metavar="FORMAT", help="one of those listed below")


def _run_import(given: argparse.Namespace) -> int:
    from afloc_jax.weights.importers import import_model

    report = import_model(given.sources, given.model, tokenizer=given.tokenizer, seed=given.seed)
    for line in report.lines():
        print(line)
    return 0


def _run_export(given: argparse.Namespace) -> int:
    from afloc_jax.export.write import export_model

    written = export_model(given.model, given.destination, given.format)
    print(f"{given.format} in {written}; python {written}/check/check.py compares it with ours")
    return 0
