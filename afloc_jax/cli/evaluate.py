"""`afloc evaluate`: scores of a model on a data set, by any of the tasks of `evaluation/tasks.py`.

The options of a task are the fields of its settings. An option that several tasks read is made from the first of them.
"""

from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.printing import print_summary
from afloc_jax.cli.settings import Option, given_options, options_of
from afloc_jax.errors import UsageError
from afloc_jax.evaluation.tasks import DEFAULT, TASKS

EXAMPLE = (
    "afloc evaluate runs/demo/model --dataset phantom --data data --out scores\n"
    "  afloc evaluate runs/demo/model --task classification --dataset phantom --data data --out auc"
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument("--dataset", required=True, metavar="NAME", help="data set (builder): phantom, masks, ...")
    command.add_argument("--data", type=path_or_bucket, required=True, metavar="DIR", help="folder of prepared records")
    command.add_argument("--out", type=path_or_bucket, required=True, metavar="DIR", help="folder to write")
    command.add_argument("--task", choices=TASKS, default=DEFAULT, help="task to evaluate (default: %(default)s)")
    groups = {tuple(TASKS): command.add_argument_group("options of every task")}
    for option, readers in _options():
        if readers not in groups:
            groups[readers] = command.add_argument_group(f"options of --task {', '.join(readers)}")
        option.add(groups[readers])


def _options() -> list[tuple[Option, tuple[str, ...]]]:
    """All options, each once, with the tasks that read it."""
    options: dict[str, Option] = {}
    readers: dict[str, tuple[str, ...]] = {}
    for task in TASKS.values():
        for option in options_of(task.settings):
            options.setdefault(option.name, option)
            readers[option.name] = (*readers.get(option.name, ()), task.name)
    return [(option, readers[name]) for name, option in options.items()]


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.page import write_report
    from afloc_jax.evaluation.run import evaluate_dataset

    options = _options()
    values = given_options(given, [option for option, _ in options])
    for option, readers in options:
        if given.task not in readers and values.pop(option.name, option.default) != option.default:
            raise UsageError(f"{option.flag} belongs to --task {' or '.join(readers)}, and this is --task {given.task}")
    task = TASKS[given.task]
    settings = task.settings.read({"name": given.dataset, "directory": str(given.data), **values})
    summary = evaluate_dataset(given.model, given.out, task, settings)
    print_summary(summary, given.out)
    print(f"report in {write_report(given.out)}")
    return 0
