"""`afloc evaluate`: scores of a model on a data set: localisation beside two baselines, classification, retrieval."""

from argparse import Namespace
from typing import Any

from afloc_jax.cli.arguments import (
    add_bootstrap,
    add_builder,
    add_compatible,
    add_protocol,
    add_thresholds,
    add_title,
    path,
)
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import print_summary
from afloc_jax.cli.tasks import add_task_options, check_options, run_task

EXAMPLE = (
    "afloc evaluate runs/demo/model --dataset phantom --data data --out scores\n"
    "  afloc evaluate runs/demo/model --task classification --dataset phantom --data data --out auc"
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path, metavar="MODEL", help="model folder")
    command.add_argument("--dataset", required=True, metavar="NAME", help="a builder: phantom, masks, ...")
    command.add_argument("--data", type=path, required=True, metavar="DIR", help="where prepared records are")
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="where to write")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files, to prepare records that are absent")
    add_builder(command)
    command.add_argument("--split", default="test", help="which part is scored (default: %(default)s)")
    command.add_argument(
        "--validation_split",
        default="validation",
        help="which part thresholds are chosen on, of chexlocalize and classification (default: %(default)s)",
    )
    command.add_argument(
        "--class_prompt",
        default="Findings suggesting {finding}.",
        metavar="TEXT",
        help="how chexlocalize asks every image for every class (default: %(default)s)",
    )
    command.add_argument(
        "--prior_split",
        default="train",
        help='which part makes the location prior; "" takes the other evaluation images (default: %(default)s)',
    )
    add_title(command)
    add_bootstrap(command)
    add_protocol(command)
    add_thresholds(command)
    add_compatible(command)
    add_task_options(command)


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.page import write_report

    check_options(given)
    summary = _localize(given) if given.task == "localization" else run_task(given)
    print_summary(summary, given.out)
    print(f"report in {write_report(given.out)}")
    return 0


def _localize(given: Namespace) -> dict[str, Any]:
    from afloc_jax.evaluation.localization.evaluate import evaluate_dataset

    return evaluate_dataset(
        given.model,
        given.out,
        {
            "name": given.dataset,
            "directory": str(given.data),
            "raw": given.raw,
            "builder": dict(given.builder),
            "split": given.split,
            "title": given.title,
            "thresholds": given.thresholds,
            "margin": given.margin,
            "validation_split": given.validation_split,
            "class_prompt": given.class_prompt,
            "prior_split": given.prior_split,
            "protocol": given.protocol,
            "compatible": given.compatible,
            "bootstrap": given.bootstrap,
            "interval": given.interval,
            "unit": given.unit,
        },
    )
