"""The task, as the command line, the page and the model card read it."""

from typing import TYPE_CHECKING

from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task

if TYPE_CHECKING:
    from afloc_jax.files import Path


def _evaluate(models: Models, out: "Path", settings: LocalizationSettings) -> JsonObject:
    from afloc_jax.evaluation.localization.evaluate import evaluate_dataset

    return evaluate_dataset(models, out, settings)


def _section(folder: "Path", summary: JsonObject) -> Section:
    from afloc_jax.evaluation.localization.section import section

    return section(folder, summary)


def _card() -> CardTable:
    from afloc_jax.evaluation.localization.metrics import FOR_READERS

    names = [metric.name for metric in FOR_READERS]
    return CardTable("Localisation without annotations, mean over categories", {name: name for name in names})


TASK = Task(
    name="localization",
    about="heat maps of phrases against masks and boxes, beside two baselines",
    settings=LocalizationSettings,
    evaluate=_evaluate,
    section=_section,
    card=_card,
)
