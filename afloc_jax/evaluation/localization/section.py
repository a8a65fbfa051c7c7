"""The section on localisation of the page: tables with baselines and published numbers, example maps, failures."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.files import read_pictures
from afloc_jax.evaluation.localization.failures import worst_samples
from afloc_jax.evaluation.localization.metrics import BY_NAME, FOR_READERS, Metric
from afloc_jax.evaluation.localization.presence import PresenceTable
from afloc_jax.evaluation.localization.protocols import AFLOC
from afloc_jax.evaluation.localization.published import METRICS as PUBLISHED
from afloc_jax.evaluation.localization.published import published_scores
from afloc_jax.evaluation.report.charts import Row, interval_chart
from afloc_jax.evaluation.report.numbers import interval_of, part_of
from afloc_jax.evaluation.results import read
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path
from afloc_jax.inference import overlays

BASELINES = {
    "location_prior": ("prior", "Location prior"),
    "prompt_prior": ("prompt", "Prompt prior"),
    "shuffled_image": ("shuffled", "Another image"),
    "class_name": ("named", "Class name alone"),
    "every_prompt": ("benchmark", "Every prompt"),
    "untrained": ("untrained", "Untrained model"),
}
_TITLES = ("best of all", "a usual one", "worst of all")
FAILURES = 15  # failures listed for each evaluation

Picture: TypeAlias = tuple[np.ndarray, np.ndarray, np.ndarray, JsonObject]
"""An example: its image [S, S], the overlay of its map [S, S, 3], its mask [S, S], and its entry of examples.json."""


@dataclass(frozen=True)
class System:
    """One row of the tables: the model, a baseline, or a benchmark on the same samples."""

    kind: str  # CSS class of its marks
    title: str
    metrics: JsonObject
    difference: JsonObject

    def value(self, metric: str, category: str | None = None) -> Interval:
        """The mean and its limits, NaN if there are none, of a category or of all categories."""
        keys = ("overall",) if category is None else ("per_category", category)
        return interval_of(self.metrics, metric, *keys)

    def minus(self, metric: str) -> Interval:
        """The difference of the model and this system."""
        return interval_of(self.difference, metric, "overall")

    def at(self, metric: str, threshold: str) -> float:
        """The mean at one threshold."""
        return interval_of(self.metrics, metric, "per_threshold", threshold).mean


def _systems(summary: JsonObject) -> list[System]:
    systems = [System("model", "Model", part_of(summary, "metrics"), {})]
    for key in part_of(summary, "baselines"):
        kind, title = BASELINES.get(key, ("benchmark", key.replace("_", " ")))
        metrics, difference = (part_of(summary, "baselines", key, part) for part in ("metrics", "difference"))
        systems.append(System(kind, title, metrics, difference))
    return systems


def section(folder: Path, summary: JsonObject) -> Section:
    """The section of one evaluation, for section.html.jinja."""
    systems = _systems(summary)
    metrics = systems[0].metrics
    present = [metric for metric in FOR_READERS if metric.name in metrics]
    categories = list(dict.fromkeys(c for metric in present for c in part_of(metrics, metric.name, "per_category")))
    names = (summary.get("title"), part_of(summary, "settings").get("name"))
    data_set, published = published_scores(*(str(name) for name in names if name))
    paper = AFLOC.options
    as_there = (summary.get("protocol"), summary.get("margin"), summary.get("thresholds"))
    if as_there != (AFLOC.name, paper.margin, list(paper.thresholds)):
        data_set, published = "", {}
    presence, few = part_of(summary, "presence"), part_of(summary, "few_positives")
    gallery = _gallery(folder)
    return Section(
        kicker="Annotation-free localisation",
        lede=("The model localised phrases in the images of", f", with {summary.get('n') or 0:,} samples in all."),
        headline=[_figure(systems, metric) for metric in present],
        shown={
            "present": present,
            "thresholded": [metric for metric in present if part_of(metrics, metric.name, "per_threshold")],
            "systems": systems,  # the model first
            "categories": categories,
            "thresholds": list(part_of(metrics, "iou", "per_threshold")),
            "charts": [(metric.title, Markup(_category_chart(systems, metric, categories, few))) for metric in present],
            "published": published,  # system -> metric -> published mean
            "published_on": data_set,
            "published_metrics": [BY_NAME[name] for name in PUBLISHED],
            "presence": read(PresenceTable, presence) if presence else None,
            "operating_points": part_of(summary, "operating_points"),
            "at": summary.get("at"),
            "boxes": part_of(summary, "boxes"),
            "threshold": summary.get("threshold"),
            "compatible": summary.get("compatible"),
            "failures": worst_samples(folder / "per_sample.csv", FAILURES),
            "gallery": gallery,
            "scale": overlays.colour_scale(),
            "made_from": {
                BASELINES[name][1]: part_of(summary, "baselines", name)["from"]
                for name in part_of(summary, "baselines")
                if name in BASELINES and "from" in part_of(summary, "baselines", name)
            },
        },
        data="images and masks",
        featured=_featured(gallery),
    )


def _figure(systems: Sequence[System], metric: Metric) -> Figure:
    """A metric at the top of the page, with the baselines."""
    others = [(other.kind, other.title.lower(), other.value(metric.name).mean) for other in systems[1:]]
    return Figure(metric.title, metric.about, systems[0].value(metric.name), others)


def _category_chart(systems: Sequence[System], metric: Metric, categories: Sequence[str], few: Collection[str]) -> str:
    rows: list[Row] = [
        {
            "name": f"{category}{'*' * (category in few)}" if category else "all categories",
            "strong": category is None,
            "model": systems[0].value(metric.name, category),
            "others": [(other.kind, other.value(metric.name, category)) for other in systems[1:]],
        }
        for category in [*categories, None]
    ]
    return interval_chart(rows, f"{metric.title} of each category, model and baselines", high=metric.highest)


def _featured(gallery: dict[str, list[Picture]]) -> list[tuple[str, Picture]]:
    """The best map of all, one of the medians of the categories, and the worst of all, by IoU.

    The middle one is of a third category where there is one, and the median of what is left to choose from.
    """
    ranked: dict[str, list[Picture]] = {"best": [], "median": [], "worst": []}
    for pictures in gallery.values():
        for picture in pictures:
            ranked[str(picture[3]["rank"])].append(picture)
    for some in ranked.values():
        some.sort(key=lambda picture: float(str(picture[3]["iou"])))
    best, worst = ranked["best"][-1:], ranked["worst"][:1]
    seen = {picture[3]["category"] for picture in best + worst}
    usual = [picture for picture in ranked["median"] if picture[3]["category"] not in seen] or ranked["median"]
    middle = usual[len(usual) // 2 :][:1]
    return [(title, one) for title, some in zip(_TITLES, (best, middle, worst), strict=True) for one in some]


def _gallery(folder: Path) -> dict[str, list[Picture]]:
    """The example maps by category, from examples.npz and examples.json (see `localization.examples`)."""
    described, arrays = read_pictures(folder)
    groups: dict[str, list[Picture]] = {}
    for k, example in enumerate(described):
        image = arrays["images"][k]
        drawn = overlays.overlay(image, arrays["heatmaps"][k].astype(np.float32))
        groups.setdefault(example["category"], []).append((image, drawn, arrays["truths"][k], example))
    return groups
