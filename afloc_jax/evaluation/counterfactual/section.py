"""The section on counterfactuals of the page: for each kind the numbers of every class, with intervals."""

from afloc_jax.evaluation.counterfactual.examples import read_examples
from afloc_jax.evaluation.counterfactual.metrics import BY_NAME, FOR_READERS, HEADLINE, KINDS, TITLES
from afloc_jax.evaluation.counterfactual.result import Counterfactuals
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    result = Counterfactuals.read(summary)
    scored = {
        kind: [metric for metric in FOR_READERS if f"{kind.name} {metric.name}" in result.metrics] for kind in KINDS
    }
    shown = [(kind, metric) for kind, metric in HEADLINE if f"{kind} {metric}" in result.metrics]
    return Section(
        subject="counterfactuals",
        kicker="Counterfactuals",
        lede=(f"{result.n:,} findings were also asked for in other words and in other images, on", "."),
        headline=[
            Figure(
                BY_NAME[metric].of(kind),
                BY_NAME[metric].about,
                result.metrics[f"{kind} {metric}"].overall,
                _beside(result, kind, metric),
            )
            for kind, metric in shown
        ],
        shown={"result": result, "scored": scored, "examples": list(read_examples(folder)), "titles": TITLES},
    )


def _beside(result: Counterfactuals, kind: str, metric: str) -> list[tuple[str, str, float | None]]:
    """The number beside one of the headline: chance, or the share of original maps with their peak in the finding."""
    chance = BY_NAME[metric].chance
    if chance is not None:
        return [("chance", "chance", chance)]
    found = result.metrics.get(f"{kind} found") if metric == "stays" else None
    return [("model", "asked as it is", found.overall.mean)] if found else []
