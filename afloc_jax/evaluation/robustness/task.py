"""The task, as the command line, the page and the model card read it."""

from typing import TYPE_CHECKING

from afloc_jax.evaluation.robustness.settings import RobustnessSettings
from afloc_jax.evaluation.task import CardTable, JsonObject, Models, Section, Task

if TYPE_CHECKING:
    from afloc_jax.files import Path


def _evaluate(models: Models, out: "Path", settings: RobustnessSettings) -> JsonObject:
    from afloc_jax.evaluation.robustness.evaluate import evaluate_robustness

    source = settings.open(settings.split)
    return evaluate_robustness(models.trained, source, out, settings).to_json()


def _section(folder: "Path", summary: JsonObject) -> Section:
    from afloc_jax.evaluation.robustness.section import section

    return section(folder, summary)


def _card() -> CardTable:
    from afloc_jax.evaluation.robustness.metrics import HEADLINE, METRICS

    return CardTable(
        "The same findings asked in several ways: mean of the ways, standard deviation, range; mean over classes",
        {f"{metric.name} {part}": f"{metric.title} {part}" for metric in METRICS for part in HEADLINE},
    )


TASK = Task(
    name="robustness",
    about="the same classes asked in several ways",
    settings=RobustnessSettings,
    evaluate=_evaluate,
    section=_section,
    card=_card,
)
