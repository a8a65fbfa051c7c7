"""`afloc classify`: zero-shot probability of classes in images."""

from argparse import Namespace

from afloc_jax.cli.arguments import add_anew, add_compatible, add_model_and_images, add_strict, path
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import finish_images
from afloc_jax.cli.settings import given_options, options_of
from afloc_jax.evaluation.classification.settings import ClassificationSettings
from data_pipelines.constants import CLASS_PROMPT

OPTIONS = options_of(ClassificationSettings, ("classes", "framing", "aggregation"))

EXAMPLE = (
    "afloc classify runs/demo/model chest.png --class pneumonia --class edema --prompts chest --out scores.csv\n"
    "  afloc classify runs/demo/model chests --class pneumonia --prompts chest --out scores.csv"
)


def add(command: Parser) -> None:
    add_model_and_images(command)
    for option in OPTIONS:
        option.add(command)
    command.add_argument(
        "--prompts",
        metavar="FILE",
        help="phrases of each class: a JSON file (docs/classification.md) or the name of a built-in set such as chest "
        f'(default: "{CLASS_PROMPT.format(finding="<class>")}")',
    )
    command.add_argument(
        "--out", type=path, required=True, metavar="FILE.csv", help="one row per image; FILE.json: model and prompts"
    )
    add_compatible(command)
    add_strict(command)
    add_anew(command)


def run(given: Namespace) -> int:
    from afloc_jax.inference.files import classify_files

    options = {"classes": None, **given_options(given, OPTIONS)}
    how = {"prompts": given.prompts, "compatible": given.compatible, "strict": given.strict, "anew": given.anew}
    done = classify_files(given.model, given.images, out=given.out, **how, **options)
    return finish_images(done.now, done.before, done.failed, given.out)
