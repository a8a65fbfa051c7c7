"""Commands that score: evaluate, score, report."""

import argparse
from pathlib import Path
from typing import Any

from afloc_jax.cli.arguments import (
    add_bootstrap,
    add_builder,
    add_command,
    add_compatible,
    add_protocol,
    add_thresholds,
    add_title,
    bootstrap_of,
)
from afloc_jax.cli.tasks import add_task_options, check_options, run_task
from afloc_jax.errors import UsageError


def add_evaluate(commands) -> None:
    command = add_command(
        commands,
        "evaluate",
        "scores of a model on a data set: localisation beside two baselines, classification, retrieval",
        "afloc evaluate runs/demo/model --dataset phantom --data data --out scores\n"
        "  afloc evaluate runs/demo/model --task classification --dataset phantom --data data --out auc",
        _run_evaluate,
    )
    command.add_argument("model", type=Path, metavar="MODEL", help="model folder")
    command.add_argument("--dataset", required=True, metavar="NAME", help="a builder: phantom, masks, ...")
    command.add_argument("--data", type=Path, required=True, metavar="DIR", help="where prepared records are")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    command.add_argument("--raw", default="", metavar="DIR", help="raw files, to prepare records that are absent")
    add_builder(command)
    command.add_argument("--split", default="test", help="which part is scored (default: %(default)s)")
    command.add_argument(
        "--validation-split",
        default="validation",
        help="which part thresholds are chosen on, of chexlocalize and classification (default: %(default)s)",
    )
    command.add_argument(
        "--class-prompt",
        default="Findings suggesting {finding}.",
        metavar="TEXT",
        help="how chexlocalize asks every image for every class (default: %(default)s)",
    )
    command.add_argument(
        "--prior-split",
        default="train",
        help='which part makes the location prior; "" takes the other evaluation images (default: %(default)s)',
    )
    add_title(command)
    add_bootstrap(command)
    add_protocol(command)
    add_thresholds(command)
    add_compatible(command)
    add_task_options(command)


def add_score(commands) -> None:
    command = add_command(
        commands,
        "score",
        "scores of any system's heat maps",
        "afloc score --truth annotations.json --heatmaps maps.npz --out scores",
        _run_score,
    )
    command.add_argument(
        "--truth",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO JSON, CheXlocalize's RLE JSON, or a CSV of mask files (image, mask, finding[, prompt, patient])",
    )
    command.add_argument(
        "--heatmaps",
        type=Path,
        metavar="FILE.npz",
        help='keys "<image path><tab><phrase, lower case>", each a map of the padded square or of the original size',
    )
    command.add_argument(
        "--segmentations",
        type=Path,
        metavar="FILE",
        help="predicted masks (RLE JSON) or points instead of maps; protocol chexlocalize",
    )
    for name, what in (("truth", "as --truth"), ("heatmaps", "as --heatmaps")):
        command.add_argument(
            f"--validation_{name}",
            type=Path,
            metavar="FILE",
            help=f"{what}: what chexlocalize's thresholds are chosen on",
        )
    command.add_argument(
        "--benchmark",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="masks or points scored on the same samples, such as radiologists'; repeatable; protocol chexlocalize",
    )
    command.add_argument(
        "--images",
        type=Path,
        metavar="DIR",
        help="folder of the images, by the names of the truth file: the report shows its examples on them",
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="where to write")
    add_title(command)
    add_bootstrap(command)
    add_protocol(command)
    add_thresholds(command)
    add_compatible(command)


def add_report(commands) -> None:
    command = add_command(
        commands,
        "report",
        "the report page of a run or of an evaluation, written anew from its files",
        "afloc report runs/demo",
        _run_report,
    )
    command.add_argument(
        "workdir", type=Path, metavar="WORKDIR", help="working directory of a run, or folder of results"
    )


def _run_evaluate(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.report import write_report

    check_options(given)
    summary = _localize(given) if given.task == "localization" else run_task(given)
    _print_summary(summary, given.out)
    print(f"report in {write_report(given.out)}")
    return 0


def _localize(given: argparse.Namespace) -> dict[str, Any]:
    from afloc_jax.evaluation.run import evaluate_dataset

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


def _run_score(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.protocols import get_protocol
    from afloc_jax.evaluation.report import write_report
    from afloc_jax.evaluation.scoring import score_files

    validation = (given.validation_truth, given.validation_heatmaps)
    if (validation[0] is None) != (validation[1] is None):
        raise UsageError("--validation_truth and --validation_heatmaps go together; give both")
    summary = score_files(
        given.truth,
        given.heatmaps,
        given.out,
        protocol=get_protocol(given.protocol, given.thresholds, given.margin),
        compatible=given.compatible,
        images=given.images,
        title=given.title,
        validation=None if validation[0] is None else validation,
        segmentations=given.segmentations,
        benchmarks=given.benchmark,
        bootstrap=bootstrap_of(given),
    )
    _print_summary(summary, given.out)
    print(f"report in {write_report(given.out)}")
    return 0


def _run_report(given: argparse.Namespace) -> int:
    from afloc_jax.evaluation.report import write_report

    print(write_report(given.workdir))
    return 0


def _print_summary(summary, out: Path) -> None:
    width = max(10, *(len(metric) for metric in summary["metrics"]))
    for metric, values in summary["metrics"].items():
        overall = values["overall"]
        if overall["mean"] is not None:
            limits = "" if overall["lower"] is None else f"  [{overall['lower']:.3f}, {overall['upper']:.3f}]"
            print(f"{metric:{width}s} {overall['mean']:7.3f}{limits}")
    print(f"{summary['n']} samples, results in {out}")
