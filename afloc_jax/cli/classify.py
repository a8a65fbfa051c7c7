"""`afloc classify`: zero-shot probability of classes in images."""

from argparse import Namespace

from afloc_jax.cli.arguments import (
    add_aggregation,
    add_compatible,
    add_framing,
    add_model_and_images,
    add_prompt_set,
    path,
)
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import finish_images
from data_pipelines.constants import CLASS_PROMPT

EXAMPLE = "afloc classify runs/demo/model chest.png --class pneumonia --class edema --out scores.csv"


def add(command: Parser) -> None:
    add_model_and_images(command)
    add_prompt_set(command, f'"{CLASS_PROMPT.format(finding="<class>")}"')
    add_framing(command)
    add_aggregation(command)
    command.add_argument(
        "--out", type=path, required=True, metavar="FILE.csv", help="one row per image; FILE.json beside it says how"
    )
    add_compatible(command)


def run(given: Namespace) -> int:
    from afloc_jax.inference.files import classify_files

    done, failed = classify_files(
        given.model,
        given.images,
        given.classes,
        given.out,
        prompts=given.prompts,
        compatible=given.compatible,
        framing=given.framing,
        aggregation=given.aggregation,
    )
    return finish_images(done, failed, given.out)
