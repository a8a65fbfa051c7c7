"""A transfer from top to bottom: config, model folder, data, heads, results, report."""

import dataclasses

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.task import Models
from afloc_jax.evaluation.transfer.evaluate import evaluate_transfer, fit_probes
from afloc_jax.evaluation.transfer.metrics import UNTRAINED
from afloc_jax.evaluation.transfer.scores import MODEL, Fitted, score
from afloc_jax.evaluation.transfer.splits import Splits, open_splits
from afloc_jax.files import Path, read_json, write_json
from afloc_jax.inference.model import Model, load
from afloc_jax.ownership import Ownership
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.training import workdir
from afloc_jax.training.failures import StopSignal
from afloc_jax.training.finetune.encoder import Stopped, fine_tune
from afloc_jax.training.finetune.settings import FinetuneConfig
from afloc_jax.training.leaving import released_when_leaving
from afloc_jax.training.processes import say
from afloc_jax.weights.config import read_config
from afloc_jax.weights.folder import weights_hash
from data_pipelines.prepared import check_source

RESULTS, HEADS = "evaluation/transfer", "heads"


def finetune(config: FinetuneConfig, folder: Path, dry_run: bool = False) -> int:
    """Learns and scores a head for each share of the labels, and writes the report. A finished run says so.

    Args:
        config: the config.
        folder: the working directory: config.json, run.json, evaluation/transfer/, report/index.html, finished.json.
        dry_run: only check the config, the model folder and whether the data are there.

    Returns:
        Exit status: 0 finished, 128 + signal number when a signal stopped it after saving.

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
    workdir.check_place(folder)
    splits = open_splits(settings)
    workdir.make_folder(folder)
    given = ((MODEL, models.trained), (UNTRAINED, models.untrained))
    with StopSignal(holding=False) as stop, Ownership(folder, say) as owner, released_when_leaving(owner.release):
        owner.take()
        write_json(folder / workdir.CONFIG, config.plain())
        write_json(folder / workdir.RUN, provenance(**account))
        if config.encoder == "frozen":
            result = evaluate_transfer(models, splits, folder / RESULTS, settings)
        else:
            try:
                systems = {name: _fine_tuned(model, name, splits, config, folder, stop) for name, model in given}
            except Stopped:
                assert stop.received is not None
                say(f"{stop.received.name}: saved; run the same command to go on")
                return stop.exit_status
            out = folder / RESULTS
            result = score(models.trained, splits, systems, out, settings, encoder="trained", head=_about(config))
        write_report(folder)
        write_json(done, {"shares": [dataclasses.asdict(share) for share in result.shares]})
    say(f"{folder}: finished; see {folder}/report/index.html")
    return 0


def _fine_tuned(
    model: Model, name: str, splits: Splits, config: FinetuneConfig, folder: Path, stop: StopSignal
) -> dict[str, Fitted]:
    """The fine-tuned head of each subset, by its name. Each head has a folder of its own below heads/."""
    probes = fit_probes(model, splits, config.settings)
    return {
        subset.name: fine_tune(
            model, probes[subset.name].linear, splits, subset, config, folder / HEADS / f"{name}_{subset.name}", stop
        )
        for subset in splits.subsets
    }


def _about(config: FinetuneConfig) -> str:
    """A description of the heads, for the page."""
    start = "the linear probe of the share" if config.training.head == "linear_probe" else "zero"
    return (
        f"Encoder and a linear head on its global features are trained, the head from {start}; the step with the "
        "lowest validation loss is scored."
    )


def _check_weights(weights: str, folder: Path) -> None:
    """Raises UsageError where the working directory has results of other weights."""
    path = folder / workdir.RUN
    if path.exists() and read_json(path, "choose another --workdir").get("weights_sha256") != weights:
        raise UsageError(f"{folder} belongs to another model (run.json has its hash); choose another --workdir")
