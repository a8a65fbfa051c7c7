"""Localisation on the page: tables beside baselines and published numbers, example maps, failures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.localization.failures import worst_samples
from afloc_jax.evaluation.localization.metrics import BY_NAME, FOR_READERS, Metric
from afloc_jax.evaluation.localization.protocols import AFLOC
from afloc_jax.evaluation.localization.published import METRICS as PUBLISHED
from afloc_jax.evaluation.localization.published import published_scores
from afloc_jax.evaluation.report.charts import interval_chart
from afloc_jax.evaluation.report.numbers import read_json
from afloc_jax.evaluation.task import Figure, Section
from afloc_jax.inference import overlays

BASELINES = {"location_prior": ("prior", "Location prior"), "untrained": ("untrained", "Untrained model")}
FAILURES = 15  # listed for each evaluation


@dataclass(frozen=True)
class System:
    """One row of the tables: the model, a baseline, or a benchmark that was scored on the same samples."""

    key: str
    kind: str  # class of its marks in the style sheet
    title: str
    metrics: Mapping[str, Any]
    difference: Mapping[str, Any]

    def entry(self, metric: str, category: str | None = None) -> Mapping[str, Any]:
        """Mean and limits, empty where there are none; of all categories if none is named."""
        values = self.metrics.get(metric, {})
        return values.get("overall", {}) if category is None else values.get("per_category", {}).get(category, {})

    def at(self, metric: str, threshold: str) -> float | None:
        """Mean at one threshold of the map."""
        return self.metrics.get(metric, {}).get("per_threshold", {}).get(threshold, {}).get("mean")


def _systems(summary: Mapping[str, Any]) -> list[System]:
    systems = [System("model", "model", "Model", summary.get("metrics", {}), {})]
    for key, baseline in summary.get("baselines", {}).items():
        kind, title = BASELINES.get(key, ("benchmark", key.replace("_", " ")))
        systems.append(System(key, kind, title, baseline.get("metrics", {}), baseline.get("difference", {})))
    return systems


def section(folder: Path, summary: Mapping[str, Any]) -> Section:
    """What section.html.jinja shows of one evaluation."""
    systems = _systems(summary)
    model = systems[0]
    present = [metric for metric in FOR_READERS if metric.name in model.metrics]
    categories = list(dict.fromkeys(c for m in present for c in model.metrics[m.name].get("per_category", {})))
    settings = summary.get("settings", {})
    data_set, published = published_scores(summary.get("title") or "", settings.get("name") or "")
    paper = AFLOC.options
    as_there = (summary.get("protocol"), summary.get("margin"), summary.get("thresholds"))
    if as_there != (AFLOC.name, paper.margin, list(paper.thresholds)):
        data_set, published = "", {}
    return Section(
        kicker="Annotation-free localisation",
        lede=(
            "Given a phrase, the model points at the place; on",
            f" it was asked {summary.get('n') or 0:,} times.",
        ),
        headline=[_figure(systems, metric) for metric in present],
        shown={
            "scale": overlays.colour_scale(),
            "present": present,
            "model": model,
            "systems": systems,
            "categories": categories,
            "thresholds": list(model.metrics.get("iou", {}).get("per_threshold", {})),
            "thresholded": [metric for metric in present if model.metrics[metric.name].get("per_threshold")],
            "charts": [(metric.title, Markup(_category_chart(systems, metric, categories))) for metric in present],
            "published_on": data_set,
            "published": published,
            "published_metrics": [BY_NAME[name] for name in PUBLISHED],
            "presence": summary.get("presence"),
            "operating_points": summary.get("operating_points", {}),
            "failures": worst_samples(folder / "per_sample.csv", FAILURES),
            "gallery": _gallery(folder),
        },
        data="images and masks",
    )


def _figure(systems: Sequence[System], metric: Metric) -> Figure:
    """A metric in the head of the page, beside the baselines."""
    others = [(other.kind, other.title.lower(), other.entry(metric.name).get("mean")) for other in systems[1:]]
    return Figure(metric.title, metric.about, systems[0].entry(metric.name), others)


def _category_chart(systems: Sequence[System], metric: Metric, categories: Sequence[str]) -> str:
    rows = [
        {
            "name": category or "all categories",
            "strong": category is None,
            "model": systems[0].entry(metric.name, category),
            "others": [(other.kind, other.entry(metric.name, category)) for other in systems[1:]],
        }
        for category in [*categories, None]
    ]
    return interval_chart(rows, f"{metric.title} of each category, model and baselines", high=metric.highest)


def _gallery(folder: Path) -> list[dict[str, Any]]:
    """Example maps by category: what `localization.examples` left in examples.npz and examples.json."""
    described = read_json(folder / "examples.json")
    if not described or not (folder / "examples.npz").is_file():
        return []
    with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
        images, maps, truths = arrays["images"], arrays["heatmaps"], arrays["truths"]
    groups: dict[str, list[dict[str, Any]]] = {}
    for i, example in enumerate(described):
        groups.setdefault(example["category"], []).append(
            {
                **example,
                "size": images[i].shape[0],
                "image": overlays.jpeg_uri(images[i]),
                "overlay": overlays.jpeg_uri(overlays.overlay(images[i], maps[i].astype(np.float32))),
                "outline": overlays.outline_path(truths[i]),
            }
        )
    return [{"category": category, "examples": examples} for category, examples in groups.items()]
