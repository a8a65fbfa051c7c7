"""The task, as the command line, the page and the model card read it."""

from pathlib import Path

from afloc_jax.evaluation.retrieval.settings import RetrievalSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task


def _evaluate(models: Models, out: Path, settings: RetrievalSettings) -> JsonObject:
    from afloc_jax.evaluation.retrieval.evaluate import evaluate_retrieval

    source = settings.open(settings.split)
    return evaluate_retrieval(models.trained, source, out, settings)


def _section(folder: Path, summary: JsonObject) -> Section:
    from afloc_jax.evaluation.retrieval.section import section

    return section(folder, summary)


def _card() -> CardTable:
    return CardTable(
        "Retrieval of reports for images and of images for reports",
        {
            f"{metric}@{top} {direction}": f"{metric[0].upper()}@{top}, {direction.replace('_', ' ')}"
            for direction in ("image_to_text", "text_to_image")
            for metric, short, top in (
                ("recall", "R", 1),
                ("recall", "R", 5),
                ("recall", "R", 10),
                ("precision", "P", 5),
            )
        },
    )


TASK = Task(
    name="retrieval",
    about="images for a report and reports for an image",
    settings=RetrievalSettings,
    evaluate=_evaluate,
    section=_section,
    card=_card,
)
