"""Evaluations other than localisation, by the name of a data set: what `afloc evaluate --task` does."""

from pathlib import Path
from typing import Any

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification import evaluate_classification
from afloc_jax.evaluation.retrieval import evaluate_retrieval
from afloc_jax.evaluation.robustness import evaluate_robustness
from afloc_jax.evaluation.settings import TaskSettings
from afloc_jax.inference.model import load
from data_pipelines.reading import RecordSource

TASKS = ("classification", "retrieval", "robustness")


def evaluate_task(task: str, model: str | Path, out: str | Path, settings: TaskSettings) -> dict[str, Any]:
    """Evaluate a model folder on a data set; returns the summary. Raises UsageError, UserError."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; there are localization, {', '.join(TASKS)}")
    source = settings.open(settings.split)
    if task == "retrieval":
        return evaluate_retrieval(load(model), source, out, settings)
    if task == "robustness":
        return evaluate_robustness(load(model), source, out, settings)
    validation = _validation(settings)
    return evaluate_classification(load(model), source, out, settings, validation)


def _validation(settings: TaskSettings) -> RecordSource | None:
    multiclass = settings.prompt_set is not None and settings.prompt_set.multiclass
    if settings.compatible or multiclass or not settings.validation_split:
        return None
    if settings.validation_split == settings.split:
        raise UsageError(
            f"--validation-split {settings.split} is the scored split, which flatters the model; choose another, or "
            '"" for a threshold of 0.5'
        )
    try:
        return settings.open(settings.validation_split)
    except UserError as error:
        raise UserError(f'{error}; thresholds are chosen there: --validation-split NAME, or "" for 0.5') from None
