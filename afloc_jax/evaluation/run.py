"""Evaluate a model on data sets by name: what training does last, and `afloc evaluate --task`."""

import itertools
import json
import re
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification.evaluate import evaluate_classification
from afloc_jax.evaluation.localization.evaluate import evaluate_with, open_split
from afloc_jax.evaluation.localization.settings import dataset_settings
from afloc_jax.evaluation.retrieval.evaluate import evaluate_retrieval
from afloc_jax.evaluation.robustness.evaluate import evaluate_robustness
from afloc_jax.evaluation.settings import TaskSettings, task_settings
from afloc_jax.inference.model import Model, load
from afloc_jax.weights.folder import update_card, weights_hash
from data_pipelines.reading import RecordSource


def evaluate_datasets(config: ConfigDict, workdir: str | Path) -> dict[str, dict[str, Any]]:
    """Evaluate `workdir/model` on every entry of `config.evaluation.datasets`; what training does last.

    An entry has `name` (the builder), `directory`, and optionally `raw`, `builder` (its keyword arguments), `split`
    ("test"), `protocol` ("afloc"), `compatible` (False), `validation_split` ("validation") and `class_prompt` (both for
    "chexlocalize"), `prior_split` ("train", the part whose masks make the location prior; "" for none), `thresholds`
    and `margin` (the protocol's own; `THRESHOLDS_OF` of the builder), `bootstrap` (resamples), `interval` and `unit`
    (see `statistics.Bootstrap`), and `title`, which also names the folder under `evaluation/`. With a `task`
    ("classification", "retrieval", "robustness") it takes the fields of `TaskSettings` and `prompts`, the file or name
    of a prompt set. Results that were made with these weights and settings are kept. The model card is given the
    results.

    Returns:
        Folder name -> summary.
    """
    workdir = Path(workdir)
    if not config.evaluation.datasets:
        return {}
    weights = weights_hash(workdir / "model")
    model: Model | None = None
    untrained: Model | None = None
    summaries: dict[str, dict[str, Any]] = {}
    for entry in config.evaluation.datasets:
        given = entry.to_dict() if isinstance(entry, ConfigDict) else dict(entry)
        settings = entry_settings({"bootstrap": config.evaluation.bootstrap, **given})
        plain = settings if isinstance(settings, dict) else settings.to_dict()
        name = _folder_name(plain, taken=summaries)
        out = workdir / "evaluation" / name
        done = _finished(out, weights, plain)
        if done is None:
            model = model or load(workdir / "model")
            if isinstance(settings, TaskSettings):
                done = evaluate_task(model, out, settings)
            else:
                untrained = untrained or model.untrained()
                done = evaluate_with(model, untrained, open_split(settings, settings["split"]), out, settings)
        summaries[name] = done
    kept = ("task", "n", "metrics")
    results = {name: {key: summary[key] for key in kept if key in summary} for name, summary in summaries.items()}
    update_card(workdir / "model", {"results": results})
    return summaries


def entry_settings(given: dict[str, Any]) -> dict[str, Any] | TaskSettings:
    """What an entry of `config.evaluation.datasets` asks for: localisation, or the task that it names.

    Raises:
        UsageError: an unknown task, key, protocol or prompt set.
    """
    task = given.get("task", "localization")
    given = {key: value for key, value in given.items() if key != "task"}
    return dataset_settings(given) if task == "localization" else task_settings(task, given)


def _folder_name(settings: dict[str, Any], taken: dict[str, Any]) -> str:
    spoken = settings["title"] or f"{settings['name']} {settings.get('task', '')}"
    base = re.sub(r"[^A-Za-z0-9._-]+", "_", spoken).strip("._") or "dataset"
    candidates = itertools.chain([base, f"{base}_{settings['split']}"], (f"{base}_{n}" for n in itertools.count(2)))
    return next(name for name in candidates if name not in taken)


def _finished(folder: Path, weights: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The summary of an earlier evaluation with the same weights and settings."""
    try:
        summary = json.loads((folder / "summary.json").read_text())
    except (OSError, ValueError):
        return None
    same = summary.get("provenance", {}).get("weights_sha256") == weights
    return summary if same and summary.get("settings") == json.loads(json.dumps(settings)) else None


def evaluate_task(model: str | Path | Model, out: str | Path, settings: TaskSettings) -> dict[str, Any]:
    """Evaluate a model, or a model folder, on a data set; returns the summary. Raises UsageError, UserError."""
    source = settings.open(settings.split)
    validation = _validation(settings) if settings.task == "classification" else None
    model = model if isinstance(model, Model) else load(model)
    if settings.task == "retrieval":
        return evaluate_retrieval(model, source, out, settings)
    if settings.task == "robustness":
        return evaluate_robustness(model, source, out, settings)
    return evaluate_classification(model, source, out, settings, validation)


def _validation(settings: TaskSettings) -> RecordSource | None:
    multiclass = settings.prompt_set is not None and settings.prompt_set.multiclass
    if settings.compatible or multiclass or not settings.validation_split:
        return None
    if settings.validation_split == settings.split:
        raise UsageError(
            f"--validation_split {settings.split} is the scored split, which flatters the model; choose another, or "
            '"" for a threshold of 0.5'
        )
    try:
        return settings.open(settings.validation_split)
    except UserError as error:
        raise UserError(f'{error}; thresholds are chosen there: --validation_split NAME, or "" for 0.5') from None
