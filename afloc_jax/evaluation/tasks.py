"""Evaluations other than localisation, by the name of a data set: what `afloc evaluate --task` does."""

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification import evaluate_classification
from afloc_jax.evaluation.retrieval import evaluate_retrieval
from afloc_jax.evaluation.robustness import evaluate_robustness
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.evaluation.statistics import RESAMPLES, Bootstrap
from afloc_jax.inference.class_prompts import read_prompt_set
from afloc_jax.inference.model import Model, load
from data_pipelines.reading import RecordSource


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


def task_settings(task: str, given: Mapping[str, Any]) -> TaskSettings:
    """`TaskSettings` from plain values, as a config holds them.

    `bootstrap` (resamples), `interval` and `unit` make its bootstrap, `prompts` (file or name) its prompt set.

    Raises:
        UsageError: an unknown key or value.
    """
    plain = dict(given)
    bootstrap = Bootstrap(
        plain.pop("bootstrap", RESAMPLES),
        interval=plain.pop("interval", "percentile"),
        unit=plain.pop("unit", "sample"),
    )
    prompts = plain.pop("prompts", None)
    known = [f.name for f in fields(TaskSettings) if f.name not in ("task", "bootstrap", "prompt_set")]
    for key in plain:
        if key not in known:
            names = ", ".join([*known, "prompts", "bootstrap", "interval", "unit"])
            raise UsageError(f"evaluation data set {given.get('name')!r}, {task}: unknown key {key!r}; known: {names}")
    prompt_set = None if prompts is None else read_prompt_set(prompts)
    return TaskSettings(task, prompt_set=prompt_set, bootstrap=bootstrap, **plain)


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
