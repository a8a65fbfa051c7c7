"""The section on robustness of the page: the spread over phrases by class, and every phrase with its intervals."""

import math
from collections.abc import Mapping

from markupsafe import Markup

from afloc_jax.evaluation.report.small_charts import SpreadRow, spread_chart
from afloc_jax.evaluation.robustness.metrics import HEADLINE, METRICS, Metric
from afloc_jax.evaluation.robustness.result import Robustness, Spread
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = Robustness.read(summary)
    metrics = [metric for metric in METRICS if metric.name in result.spread]
    return Section(
        subject="wording",
        kicker="Robustness to wording",
        lede=(f"The same {len(result.paraphrases)} findings with several phrases, on {result.n:,} images of", "."),
        headline=[
            Figure(f"{metric.title}, {part}", about, result.metrics[f"{metric.name} {part}"].overall)
            for metric in metrics
            for part, about in HEADLINE.items()
        ],
        shown={
            "metrics": metrics,
            "charts": [(metric.title, Markup(_chart(metric, result.spread[metric.name]))) for metric in metrics],
            "result": result,
        },
    )


def _chart(metric: Metric, classes: Mapping[str, Spread]) -> str:
    rows = []
    for name, spread in classes.items():
        values = {text: value.mean for text, value in spread.per_paraphrase.items() if math.isfinite(value.mean)}
        rows.append(SpreadRow(name, spread.mean.mean, values))
    return spread_chart(rows, f"{metric.title} of every phrase, by class", high=metric.high)
