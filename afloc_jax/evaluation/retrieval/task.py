"""The task, as the command line, the page and the model card read it."""

from typing import TYPE_CHECKING

from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task

if TYPE_CHECKING:
    from afloc_jax.files import Path


def _evaluate(models: Models, out: "Path", settings: RetrievalSettings) -> JsonObject:
    from afloc_jax.evaluation.retrieval.evaluate import evaluate_retrieval

    source = settings.open(settings.split)
    return evaluate_retrieval(models.trained, source, out, settings).to_json()


def _section(folder: "Path", summary: JsonObject) -> Section:
    from afloc_jax.evaluation.retrieval.section import section

    return section(folder, summary)


def _card() -> CardTable:
    from afloc_jax.evaluation.retrieval.metrics import CARD

    title = "Retrieval of reports for images and of images for reports"
    return CardTable(title, {metric.key: metric.title for metric in CARD})


TASK = Task(
    name="retrieval",
    about="images for a report and reports for an image",
    settings=RetrievalSettings,
    evaluate=_evaluate,
    section=_section,
    card=_card,
)
