"""Localisation on the page: tables beside baselines and published numbers, example maps, failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.files import read_pictures
from afloc_jax.evaluation.localization.failures import Failures, worst_samples
from afloc_jax.evaluation.localization.metrics import BY_NAME, FOR_READERS, Metric
from afloc_jax.evaluation.localization.protocols import AFLOC
from afloc_jax.evaluation.localization.published import METRICS as PUBLISHED
from afloc_jax.evaluation.localization.published import published_scores
from afloc_jax.evaluation.report.charts import Entry, Row, interval_chart
from afloc_jax.evaluation.report.numbers import entry_of, part_of
from afloc_jax.evaluation.task import Figure, JsonObject, Section
from afloc_jax.files import Path
from afloc_jax.inference import overlays

BASELINES = {"location_prior": ("prior", "Location prior"), "untrained": ("untrained", "Untrained model")}
FAILURES = 15  # listed for each evaluation


@dataclass(frozen=True)
class System:
    """One row of the tables: the model, a baseline, or a benchmark that was scored on the same samples."""

    kind: str  # class of its marks in the style sheet
    title: str
    metrics: JsonObject
    difference: JsonObject

    def entry(self, metric: str, category: str | None = None) -> Entry:
        """Mean and limits, empty where there are none; of all categories if none is named."""
        keys = ("overall",) if category is None else ("per_category", category)
        return entry_of(self.metrics, metric, *keys)

    def minus(self, metric: str) -> Entry:
        """The model less this one."""
        return entry_of(self.difference, metric, "overall")

    def at(self, metric: str, threshold: str) -> float | None:
        """Mean at one threshold of the map."""
        return entry_of(self.metrics, metric, "per_threshold", threshold).get("mean")


def _systems(summary: JsonObject) -> list[System]:
    systems = [System("model", "Model", part_of(summary, "metrics"), {})]
    for key in part_of(summary, "baselines"):
        kind, title = BASELINES.get(key, ("benchmark", key.replace("_", " ")))
        metrics, difference = (part_of(summary, "baselines", key, part) for part in ("metrics", "difference"))
        systems.append(System(kind, title, metrics, difference))
    return systems


@dataclass(frozen=True)
class Picture:
    """An example: its image and heat map as data URIs, the outline of the truth, and what examples.json says of it."""

    size: int
    image: str
    overlay: str
    outline: str
    about: JsonObject


@dataclass(frozen=True)
class Shown:
    """What section.html.jinja reads.

    Attributes:
        present, thresholded, published_metrics: metrics of the tables: all, those with thresholds, those of the papers.
        systems: the model first.
        charts: title and SVG of one chart per metric.
        published, published_on: system -> metric -> mean as printed, and the data set that was.
        presence, operating_points: of a protocol with negatives, as summary.json has them.
        gallery: examples by category.
    """

    present: list[Metric]
    thresholded: list[Metric]
    systems: list[System]
    categories: list[str]
    thresholds: list[str]
    charts: list[tuple[str, Markup]]
    published: Mapping[str, Mapping[str, float]]
    published_on: str
    presence: JsonObject
    operating_points: JsonObject
    failures: Failures
    gallery: Mapping[str, Sequence[Picture]]
    published_metrics: Sequence[Metric] = tuple(BY_NAME[name] for name in PUBLISHED)
    scale: Sequence[str] = field(default_factory=overlays.colour_scale)


def section(folder: Path, summary: JsonObject) -> Section:
    """What section.html.jinja shows of one evaluation."""
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
    return Section(
        kicker="Annotation-free localisation",
        lede=("Given a phrase, the model points at the place; on", f" it was asked {summary.get('n') or 0:,} times."),
        headline=[_figure(systems, metric) for metric in present],
        shown=Shown(
            present=present,
            thresholded=[metric for metric in present if part_of(metrics, metric.name, "per_threshold")],
            systems=systems,
            categories=categories,
            thresholds=list(part_of(metrics, "iou", "per_threshold")),
            charts=[(metric.title, Markup(_category_chart(systems, metric, categories))) for metric in present],
            published=published,
            published_on=data_set,
            presence=part_of(summary, "presence"),
            operating_points=part_of(summary, "operating_points"),
            failures=worst_samples(folder / "per_sample.csv", FAILURES),
            gallery=_gallery(folder),
        ),
        data="images and masks",
    )


def _figure(systems: Sequence[System], metric: Metric) -> Figure:
    """A metric in the head of the page, beside the baselines."""
    others = [(other.kind, other.title.lower(), other.entry(metric.name).get("mean")) for other in systems[1:]]
    return Figure(metric.title, metric.about, systems[0].entry(metric.name), others)


def _category_chart(systems: Sequence[System], metric: Metric, categories: Sequence[str]) -> str:
    rows: list[Row] = [
        {
            "name": category or "all categories",
            "strong": category is None,
            "model": systems[0].entry(metric.name, category),
            "others": [(other.kind, other.entry(metric.name, category)) for other in systems[1:]],
        }
        for category in [*categories, None]
    ]
    return interval_chart(rows, f"{metric.title} of each category, model and baselines", high=metric.highest)


def _gallery(folder: Path) -> dict[str, list[Picture]]:
    """Example maps by category: what `localization.examples` left in examples.npz and examples.json."""
    described, arrays = read_pictures(folder)
    if not described:
        return {}
    images, maps, truths = arrays["images"], arrays["heatmaps"], arrays["truths"]
    groups: dict[str, list[Picture]] = {}
    for image, heatmap, truth, example in zip(images, maps, truths, described, strict=True):
        picture = Picture(
            size=image.shape[0],
            image=overlays.jpeg_uri(image),
            overlay=overlays.jpeg_uri(overlays.overlay(image, heatmap.astype(np.float32))),
            outline=overlays.outline_path(truth),
            about=example,
        )
        groups.setdefault(example["category"], []).append(picture)
    return groups
