"""A transfer from top to bottom: config, model folder, data, heads, results, report."""

import dataclasses

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.task import Models
from afloc_jax.evaluation.transfer.evaluate import evaluate_transfer
from afloc_jax.evaluation.transfer.splits import open_splits
from afloc_jax.files import Path, read_json, write_json
from afloc_jax.inference.model import load
from afloc_jax.ownership import Ownership
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.training import workdir
from afloc_jax.training.finetune.settings import FinetuneConfig
from afloc_jax.training.processes import say
from afloc_jax.weights.config import read_config
from afloc_jax.weights.folder import weights_hash
from data_pipelines.prepared import check_source

RESULTS = "evaluation/transfer"


def finetune(config: FinetuneConfig, folder: Path, dry_run: bool = False) -> int:
    """Learns and scores a head for each share of the labels, and writes the report. A finished run says so.

    Args:
        config: the config.
        folder: the working directory: config.json, run.json, evaluation/transfer/, report/index.html, finished.json.
        dry_run: only check the config, the model folder and whether the data are there.

    Returns:
        Exit status 0.

    Raises:
        UsageError: the config is wrong, or the working directory belongs to another config or another run has it.
        UserError: the model folder or the labels are unusable.
    """
    if not config.init_from:
        raise UsageError("config.init_from is empty: a transfer starts from a model folder, such as runs/demo/model")
    read_config(config.init_from)  # a folder that is none is refused in one line
    found = workdir.differing(config, folder)
    workdir.refuse({key: both for key, both in found.items() if key != "init_from"}, folder)
    account = {"weights_sha256": weights_hash(config.init_from), "config_sha256": hash_of(config.plain())}
    _check_weights(account["weights_sha256"], folder)
    settings, models = config.settings, Models(lambda: load(config.init_from))
    if dry_run:
        check_source(settings.name, settings.directory, raw=settings.raw, builder=settings.builder)
        say(f"{config.name}: the config is valid")
        return 0
    done = folder / workdir.FINISHED
    if done.exists():
        say(f"{folder}: already finished; see {folder}/report/index.html")
        return 0
    splits = open_splits(settings)
    workdir.make_folder(folder)
    with Ownership(folder, say) as owner:
        owner.take()
        write_json(folder / workdir.CONFIG, config.plain())
        write_json(folder / workdir.RUN, provenance(**account))
        result = evaluate_transfer(models, splits, folder / RESULTS, settings)
        write_report(folder)
        write_json(done, {"shares": [dataclasses.asdict(share) for share in result.shares]})
    say(f"{folder}: finished; see {folder}/report/index.html")
    return 0


def _check_weights(weights: str, folder: Path) -> None:
    """Raises UsageError where the working directory has results of other weights."""
    path = folder / workdir.RUN
    if path.exists() and read_json(path, "choose another --workdir").get("weights_sha256") != weights:
        raise UsageError(f"{folder} belongs to another model (run.json has its hash); choose another --workdir")
