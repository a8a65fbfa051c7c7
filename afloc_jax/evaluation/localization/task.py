"""The task, as the command line, the page and the model card read it."""

from pathlib import Path

from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task


def _evaluate(models: Models, out: Path, settings: LocalizationSettings) -> JsonObject:
    from afloc_jax.evaluation.localization.evaluate import evaluate_dataset

    return evaluate_dataset(models, out, settings)


def _section(folder: Path, summary: JsonObject) -> Section:
    from afloc_jax.evaluation.localization.section import section

    return section(folder, summary)


TASK = Task(
    name="localization",
    about="heat maps of phrases against masks and boxes, beside two baselines",
    settings=LocalizationSettings,
    evaluate=_evaluate,
    section=_section,
    card=CardTable(
        "Localisation without annotations, mean over categories",
        {"pointing": "pointing", "iou": "iou", "dice": "dice", "cnr": "cnr"},
    ),
)
