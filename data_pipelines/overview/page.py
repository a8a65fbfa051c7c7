"""The overview of a prepared data set as one self-contained page. It shows pictures, never report text."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import jinja2
import numpy as np

from afloc_jax.errors import UserError
from data_pipelines.overview.measure import LONG_REPORT, Overview, Records, distribution, measure
from data_pipelines.reading import Record

PICTURES = 40
_SIDE = 224  # pixels of a picture on the page
_OUTLINE = (191, 212, 45)  # BGR of --truth in style.css
_BARS = 24  # of a histogram
_FIRST_LABELS = 30  # shown at once; the others unfold


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
    findings = {label: distribution(values) for label, values in sorted(overview.findings.items())}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        overview=overview,
        account=account or {},
        total=sum(overview.records.values()),
        figures=_figures(overview),
        histograms=[_histogram("words", overview.words), _histogram("sentences", overview.sentences)]
        if overview.words
        else [],
        labels=_label_rows(overview),
        first_labels=_FIRST_LABELS,
        findings=findings,
        largest=max((values["high"] for values in findings.values()), default=0) or 1.0,
        pictures=_pictures(sources),
        long_report=LONG_REPORT,
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return overview


def _figures(overview: Overview) -> list[dict[str, Any]]:
    """The numbers at the top, those that the data set has."""
    total, text = sum(overview.records.values()), sum(overview.with_text.values())
    annotated = sum(len(values) for values in overview.findings.values())
    patients, unknown = sum(overview.patients.values()), sum(overview.without_patient.values())
    kinds = len(overview.findings)
    candidates = [
        (total, "records", ", ".join(overview.records)),
        (patients, "patients", f"unknown for {unknown:,} records" if unknown else "known for every record"),
        (text, "with text", f"{100 * text / max(1, total):.0f} % of the records"),
        (len(overview.labels), "labels", "present, absent or uncertain"),
        (annotated, "annotated findings", f"of {kinds} kind{'s' if kinds > 1 else ''}"),
    ]
    return [{"value": value, "label": label, "about": about} for value, label, about in candidates if value]


def _label_rows(overview: Overview) -> list[dict[str, Any]]:
    """Counts of each label and the parts of its bar in per cent of all records, the most frequent first."""
    total = max(1, sum(overview.records.values()))
    rows = []
    for name, counts in sorted(overview.labels.items(), key=lambda entry: (-entry[1][1], entry[0])):
        kinds = {"present": counts[1], "uncertain": counts[-1], "absent": counts[0]}
        unknown = total - sum(kinds.values())
        title = ", ".join(f"{kind} {count:,}" for kind, count in {**kinds, "unknown": unknown}.items())
        parts = [(kind, 100 * count / total) for kind, count in kinds.items() if count]
        rows.append({"name": name, "parts": parts, "title": title, **kinds})
    return rows


def _histogram(name: str, values: Sequence[int]) -> dict[str, Any]:
    """Bars of from, to (both included), count and height in per cent; what lies above the 99th percentile is in the
    last one, and `cut` says so."""
    top = max(1, int(np.ceil(np.percentile(values, 99))))
    width = max(1, -(-(top + 1) // _BARS))
    edges = np.arange(0, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(values, top), edges)
    bars = [
        {"low": int(low), "high": int(low) + width - 1, "count": int(count), "height": 100 * int(count) / counts.max()}
        for low, count in zip(edges[:-1], counts, strict=True)
    ]
    return {"name": name, "spread": distribution(values), "bars": bars, "cut": max(values) > bars[-1]["high"]}


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
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(color, outlines, -1, _OUTLINE, 2)
    about = ", ".join(filter(None, [split, record.view, *sorted({finding.label for finding in record.findings})]))
    jpeg = cv2.imencode(".jpg", color, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    return {"id": record.id, "about": about, "jpeg": base64.b64encode(jpeg).decode()}
