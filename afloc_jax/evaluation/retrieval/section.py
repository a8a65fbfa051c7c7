"""Retrieval on the page: R@K and P@K beside chance, and images that some reports retrieve."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from afloc_jax.evaluation.report.numbers import read_json
from afloc_jax.evaluation.report.small_charts import interval_cell
from afloc_jax.evaluation.task import Figure, Section
from afloc_jax.inference import overlays

SHORT = {"recall": "R", "precision": "P"}
DIRECTIONS = {"image_to_text": "image to report", "text_to_image": "report to image"}


def section(folder: Path, summary: Mapping[str, Any]) -> Section:
    """What section.html.jinja shows of one evaluation."""
    metrics = summary.get("metrics", {})
    by_class = summary.get("by_class", False)
    wanted = "an image or report of the same class" if by_class else "the report of an image, the image of a report"
    keys = list(dict.fromkeys(key.split()[0] for key in metrics))  # recall@1, ...
    headline = "precision" if by_class else "recall"
    return Section(
        kicker="Retrieval of images and reports",
        lede=(f"Asked for {wanted}, among {summary.get('n') or 0:,} pairs of", "."),
        headline=[_figure(metrics, key, name) for name in DIRECTIONS for key in keys if key.startswith(headline)],
        shown={
            "directions": list(DIRECTIONS.values()),
            "rows": [_row(metrics, key) for key in keys],
            "classes": list(summary.get("n_per_category", {})) if by_class else [],
            "by_class": [
                {"label": _label(key), "direction": DIRECTIONS[key.split()[1]], **metrics[key]} for key in metrics
            ],
            "queries": _queries(folder),
        },
    )


def _label(key: str) -> str:
    """recall@5 -> R@5."""
    metric, _, top = key.split()[0].partition("@")
    return f"{SHORT[metric]}@{top}"


def _figure(metrics: Mapping[str, Any], key: str, direction: str) -> Figure:
    values = metrics[f"{key} {direction}"]
    about = f"the first {key.partition('@')[2]} of the ranking"
    chance = ("chance", "chance", values.get("chance"))
    return Figure(f"{_label(key)}, {DIRECTIONS[direction]}", about, values["overall"], [chance])


def _row(metrics: Mapping[str, Any], key: str) -> dict[str, Any]:
    """One line: both directions, each with its interval as a plot."""
    cells = []
    for direction in DIRECTIONS:
        values = metrics[f"{key} {direction}"]
        svg = Markup(interval_cell(values["overall"], reference=values.get("chance")))  # our own SVG
        cells.append({"entry": values["overall"], "chance": values.get("chance"), "svg": svg})
    return {"label": _label(key), "cells": cells}


def _queries(folder: Path) -> list[dict[str, Any]]:
    """The pictures that `retrieval.examples.write_retrieved` left, a query each."""
    described = read_json(folder / "examples.json")
    if not described or not (folder / "examples.npz").is_file():
        return []
    with np.load(folder / "examples.npz", allow_pickle=False) as arrays:
        images = arrays["images"]

    def picture(item: Mapping[str, Any]) -> dict[str, Any]:
        image = images[item["image"]]
        return {**item, "size": image.shape[0], "image": overlays.jpeg_uri(image)}

    return [{**picture(query), "retrieved": [picture(item) for item in query["retrieved"]]} for query in described]
