"""`afloc import`: a model folder from published checkpoints or pretrained parts."""

from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser

EXAMPLE = (
    "afloc import afloc.ckpt runs/published --tokenizer Bio_ClinicalBERT\n"
    "  afloc import resnet50.pth Bio_ClinicalBERT runs/start\n\n"
    "SOURCE: a checkpoint of the published AFLoc or of GLoRIA, a torchvision or timm ResNet or DenseNet (.pth or\n"
    ".safetensors), a Hugging Face folder or hub name of a BERT, a ViT or a DINOv2 (RAD-DINO); several parts together\n"
    "make one model. Code in a file is never run. MODEL is the folder to write."
)


def add(command: Parser) -> None:
    command.add_argument("sources", nargs="+", metavar="SOURCE", help="file, folder or hub name; its kind is detected")
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder to write")
    command.add_argument(
        "--tokenizer", metavar="DIR", help="folder with vocab.txt or tokenizer.json, if no source has one"
    )
    command.add_argument(
        "--seed", type=int, default=1, help="seed of the parameters that no source has (default: %(default)s)"
    )


def run(given: Namespace) -> int:
    from afloc_jax.weights.importers import import_model

    report = import_model(given.sources, given.model, tokenizer=given.tokenizer, seed=given.seed)
    for line in report.lines():
        print(line)
    return 0
