"""The task, as the command line, the page and the model card read it."""

from typing import TYPE_CHECKING

from afloc_jax.evaluation.classification.settings import ClassificationSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task

if TYPE_CHECKING:
    from afloc_jax.files import Path


def _evaluate(models: Models, out: "Path", settings: ClassificationSettings) -> JsonObject:
    from afloc_jax.evaluation.classification.evaluate import evaluate_dataset

    return evaluate_dataset(models, out, settings).to_json()


def _section(folder: "Path", summary: JsonObject) -> Section:
    from afloc_jax.evaluation.classification.section import section

    return section(folder, summary)


def _card() -> CardTable:
    from afloc_jax.evaluation.classification.metrics import BY_NAME, HEADLINE

    return CardTable("Zero-shot classification, mean over classes", {name: BY_NAME[name].card for name in HEADLINE})


TASK = Task(
    name="classification",
    about="zero-shot probabilities of classes",
    settings=ClassificationSettings,
    evaluate=_evaluate,
    section=_section,
    card=_card,
)
