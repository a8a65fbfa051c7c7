"""`afloc calibrate`: the probability of presence of a model, fitted on validation data."""

from argparse import Namespace

from afloc_jax.cli.arguments import path_or_bucket
from afloc_jax.cli.parser import Parser
from afloc_jax.cli.settings import given_options, options_of
from afloc_jax.evaluation.presence.settings import CalibrationSettings

OPTIONS = options_of(CalibrationSettings, ("raw", "builder", "cache", "split", "classes", "labels", "unlisted"))

EXAMPLE = (
    "afloc calibrate runs/mine/model --dataset pairs --data data\n\n"
    "Writes calibration.json into the model folder. Labels are those of the records or of --labels; without any, they\n"
    "are read from the reports by rule: stated, denied, or silent, which is left out."
)


def add(command: Parser) -> None:
    command.add_argument("model", type=path_or_bucket, metavar="MODEL", help="model folder")
    command.add_argument("--dataset", required=True, metavar="NAME", help="data set (builder): phantom, pairs, ...")
    command.add_argument("--data", type=path_or_bucket, required=True, metavar="DIR", help="folder of prepared records")
    for option in OPTIONS:
        option.add(command)


def run(given: Namespace) -> int:
    from afloc_jax.evaluation.presence.fit import calibrate
    from afloc_jax.weights.calibration import own_fits

    values = {"name": given.dataset, "directory": str(given.data), **given_options(given, OPTIONS)}
    fitted = calibrate(given.model, CalibrationSettings.read(values))
    own = [fit.name for fit in own_fits(fitted)]
    pooled = [fit.name for fit in fitted.classes if fit.name not in own]
    source = {"reports": "labels by rule from the reports", "table": "labels of the table"}
    print(
        f"{given.model}: calibrated on {fitted.records} records, {source.get(fitted.labels, 'labels of the records')}"
    )
    print(f"a fit of its own: {', '.join(own) or 'no class'}; pooled: {', '.join([*pooled, 'all other prompts'])}")
    return 0
