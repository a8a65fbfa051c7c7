"""Evaluations other than localisation, by the name of a data set: what `afloc evaluate --task` does."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.classification import evaluate_classification
from afloc_jax.evaluation.retrieval import evaluate_retrieval
from afloc_jax.evaluation.robustness import evaluate_robustness
from afloc_jax.evaluation.statistics import Bootstrap
from afloc_jax.inference.class_prompts import read_prompt_set
from afloc_jax.inference.model import load
from data_pipelines.images import Framing
from data_pipelines.reading import RecordSource
from data_pipelines.sources import open_source

TASKS = ("classification", "retrieval", "robustness")


@dataclass(frozen=True)
class TaskSettings:
    """A data set and how it is evaluated.

    Attributes:
        name, directory, raw, builder, split: as in `data_pipelines.sources.open_source`.
        validation_split: on which thresholds are chosen; "" for none.
        classes: names; empty: all that occur.
        prompts: file or name of a prompt set; None: "Findings suggesting <class>.".
        framing: "pad" or "crop".
        labels: CSV of labels; None: the records' findings.
        by_class, per_class: of retrieval, see `evaluate_retrieval`.
        compatible: as the release.
        bootstrap: how intervals are made.
    """

    name: str
    directory: str
    raw: str = ""
    builder: Mapping[str, Any] = field(default_factory=dict)
    split: str = "test"
    validation_split: str = "validation"
    classes: Sequence[str] = ()
    prompts: str | None = None
    framing: Framing = "pad"
    labels: str | None = None
    by_class: bool = False
    per_class: int = 200
    compatible: bool = False
    bootstrap: Bootstrap = field(default_factory=Bootstrap)

    def to_dict(self) -> dict[str, Any]:
        """For the record: how the data set was opened."""
        return {
            "name": self.name,
            "directory": str(self.directory),
            "raw": str(self.raw),
            "builder": dict(self.builder),
            "split": self.split,
            "validation_split": self.validation_split,
            "labels": self.labels,
        }

    def open(self, split: str) -> RecordSource:
        """One split of the data set."""
        return open_source(self.name, self.directory, split, raw=self.raw, builder=self.builder)


def evaluate_task(task: str, model: str | Path, out: str | Path, settings: TaskSettings) -> dict[str, Any]:
    """Evaluate a model folder on a data set; returns the summary. Raises UsageError, UserError."""
    if task not in TASKS:
        raise UsageError(f"unknown task {task!r}; there are localization, {', '.join(TASKS)}")
    prompt_set = read_prompt_set(settings.prompts)  # a wrong file should not take seconds to say so
    source = settings.open(settings.split)
    common: dict[str, Any] = {
        "classes": settings.classes,
        "framing": settings.framing,
        "labels": settings.labels,
        "compatible": settings.compatible,
        "bootstrap": settings.bootstrap,
        "settings": settings.to_dict(),
    }
    if task == "retrieval":
        common |= {"by_class": settings.by_class, "per_class": settings.per_class}
        return evaluate_retrieval(load(model), source, out, **common)
    if task == "robustness":
        return evaluate_robustness(load(model), source, out, prompt_set=prompt_set, **common)
    validation = _validation(settings, prompt_set.multiclass)
    return evaluate_classification(load(model), source, out, validation=validation, prompt_set=prompt_set, **common)


def _validation(settings: TaskSettings, multiclass: bool) -> RecordSource | None:
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
