"""The overview of a prepared data set as one self-contained page. It shows pictures, never report text."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from afloc_jax.errors import UserError
from data_pipelines.images import encode_png
from data_pipelines.overview.measure import LONG_REPORT, Overview, Records, distribution, measure
from data_pipelines.reading import Record

PICTURES = 40
_SIDE = 160  # pixels of a picture on the page
_BARS = 24  # of a histogram


def write_overview(
    path: str | Path, title: str, sources: Mapping[str, Records], account: Mapping[str, Any] | None = None
) -> Overview:
    """Measures a data set and writes the page.

    Args:
        path: the HTML file.
        title: heading, such as the name of the data set.
        sources: split -> records.
        account: the build report, for what was left out.

    Raises UserError when the page cannot be written.
    """
    overview = measure(sources)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        overview=overview,
        account=account or {},
        words=distribution(overview.words),
        sentences=distribution(overview.sentences),
        word_bars=_bars(overview.words),
        sentence_bars=_bars(overview.sentences),
        areas={label: distribution(values) for label, values in sorted(overview.findings.items())},
        labels=sorted(overview.labels.items()),
        pictures=_pictures(sources),
        long_report=LONG_REPORT,
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return overview


def _bars(values: Sequence[int]) -> list[dict[str, Any]]:
    """A histogram: from, to (both included), count and height in per cent, up to the 99th percentile."""
    if not values:
        return []
    top = max(1, int(np.percentile(values, 99)))
    width = max(1, -(-(top + 1) // _BARS))
    edges = np.arange(0, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(values, top), edges)
    return [
        {"low": int(low), "high": int(low) + width - 1, "count": int(count), "height": 100 * int(count) / counts.max()}
        for low, count in zip(edges[:-1], counts, strict=True)
    ]


def _pictures(sources: Mapping[str, Records]) -> list[dict[str, str]]:
    """Evenly spaced records of all splits, outlines of their findings drawn in."""
    places = [(split, k) for split, source in sources.items() for k in range(len(source))]
    count = min(PICTURES, len(places))
    chosen = [places[k * (len(places) - 1) // max(1, count - 1)] for k in range(count)]
    return [_picture(split, sources[split][k]) for split, k in chosen]


def _picture(split: str, record: Record) -> dict[str, str]:
    color = cv2.cvtColor(cv2.resize(record.image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    for finding in record.findings:
        mask = cv2.resize(finding.mask.astype(np.uint8), (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(color, outlines, -1, (40, 170, 255), 1)
    about = ", ".join(filter(None, [split, record.view, *sorted({finding.label for finding in record.findings})]))
    return {"id": record.id, "about": about, "png": base64.b64encode(encode_png(color)).decode()}
