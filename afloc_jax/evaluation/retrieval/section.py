"""The section on retrieval of the page: R@K and P@K with chance levels, and images that some reports retrieve."""

from afloc_jax.evaluation.retrieval.examples import read_retrieved
from afloc_jax.evaluation.retrieval.metrics import DIRECTIONS, Metric
from afloc_jax.evaluation.retrieval.result import BesideChance, Retrieval
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = Retrieval.read(summary)
    metrics = {Metric.of_key(key): values for key, values in result.metrics.items()}
    rows: dict[str, list[BesideChance]] = {}
    for metric, values in metrics.items():
        rows.setdefault(metric.short, []).append(values)
    wanted = (
        "an image or report of the same class" if result.by_class else "the report of an image, the image of a report"
    )
    headline = "precision" if result.by_class else "recall"
    return Section(
        subject="retrieval",
        kicker="Retrieval of images and reports",
        lede=(f"The model retrieved {wanted}, among {result.n:,} pairs of", "."),
        headline=[
            Figure(
                metric.heading,
                f"the first {metric.top} of the ranking",
                values.overall,
                [("chance", "chance", values.chance)],
            )
            for metric, values in metrics.items()
            if metric.kind == headline
        ],
        shown={
            "directions": list(DIRECTIONS.values()),
            "rows": rows,  # "R@5" and the like, each with its value in every direction
            "classes": result.classes,
            "metrics": metrics,
            "queries": list(read_retrieved(folder)),
        },
    )
