"""Options of `afloc evaluate` for tasks other than localisation."""

import argparse
from typing import Any

from afloc_jax.cli.arguments import add_aggregation, add_framing, add_prompt_set, count
from afloc_jax.errors import UsageError

TASKS = ("localization", "classification", "retrieval", "robustness")
_OF_RECORDS = ("classification", "retrieval", "robustness")
# Options that not every task reads: name of the value, flag, tasks that read it.
_READ_BY = (
    ("protocol", "--protocol", ("localization",)),
    ("class_prompt", "--class_prompt", ("localization",)),
    ("prior_split", "--prior_split", ("localization",)),
    ("thresholds", "--thresholds", ("localization",)),
    ("margin", "--margin", ("localization",)),
    ("validation_split", "--validation_split", ("localization", "classification")),
    ("classes", "--class", _OF_RECORDS),
    ("prompts", "--prompts", ("classification", "robustness")),
    ("framing", "--framing", _OF_RECORDS),
    ("aggregation", "--aggregation", ("classification",)),
    ("labels", "--labels", _OF_RECORDS),
    ("unlisted", "--unlisted", _OF_RECORDS),
    ("by_class", "--by_class", ("retrieval",)),
    ("per_class", "--per_class", ("retrieval",)),
)


def add_task_options(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--task", choices=TASKS, default="localization", help="what is evaluated (default: %(default)s)"
    )
    group = command.add_argument_group("options of the other tasks")
    add_prompt_set(group, "as the data set's validation records ask; ten ways of each class for robustness")
    add_framing(group)
    add_aggregation(group)
    group.add_argument(
        "--labels", metavar="FILE.csv", help="labels of the records: column id and one per class; 1, 0, empty"
    )
    group.add_argument(
        "--unlisted",
        choices=("unknown", "absent"),
        default="unknown",
        help="what a class is that the labels of a record do not list; absent where they list all that is present "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--by_class", action="store_true", help="retrieval: relevant is what has the class of the query (5 x 200)"
    )
    group.add_argument(
        "--per_class", type=count, default=200, metavar="N", help="records of each class (default: %(default)s)"
    )
    command.set_defaults(unless_given={name: command.get_default(name) for name, _, _ in _READ_BY})


def check_options(given: argparse.Namespace) -> None:
    """Refuse an option that the task would not read. Raises UsageError."""
    for name, flag, tasks in _READ_BY:
        if given.task not in tasks and getattr(given, name) != given.unless_given[name]:
            raise UsageError(f"{flag} belongs to --task {' or '.join(tasks)}, and this is --task {given.task}")


def run_task(given: argparse.Namespace) -> dict[str, Any]:
    from afloc_jax.evaluation.run import evaluate_task
    from afloc_jax.evaluation.settings import task_settings

    settings = {
        "name": given.dataset,
        "directory": str(given.data),
        "raw": given.raw,
        "builder": dict(given.builder),
        "split": given.split,
        "title": given.title,
        "validation_split": given.validation_split,
        "classes": tuple(given.classes or ()),
        "prompts": given.prompts,
        "aggregation": given.aggregation,
        "framing": given.framing,
        "labels": given.labels,
        "unlisted": given.unlisted,
        "by_class": given.by_class,
        "per_class": given.per_class,
        "compatible": given.compatible,
        "bootstrap": given.bootstrap,
        "interval": given.interval,
        "unit": given.unit,
    }
    return evaluate_task(given.model, given.out, task_settings(given.task, settings))
