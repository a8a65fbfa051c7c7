"""The overview of a prepared data set as one self-contained page. It shows pictures, never report text."""

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path as PackagePath

import cv2
import jinja2
import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.files import Path, write_whole
from data_pipelines.building.account import BuildReport
from data_pipelines.overview.measure import LONG_REPORT, Distribution, Overview, distribution, measure
from data_pipelines.reading import Records
from data_pipelines.records import Record
from data_pipelines.what_images import IMAGES

PICTURES = 40
_SIDE = 224  # side of a picture on the page, pixels
_OUTLINE = (191, 212, 45)  # BGR of --truth in style.css
_BARS = 24  # most bars of a histogram
_FIRST_LABELS = 30  # labels shown at first; the others can be unfolded


def write_overview(
    path: str | os.PathLike[str], title: str, sources: Mapping[str, Records], report: BuildReport | None = None
) -> Overview:
    """Measures a data set and writes the page.

    Args:
        path: the HTML file.
        title: the heading, such as the name of the data set.
        sources: split -> records.
        report: the report of the build, from which the page shows what was left out.

    Raises UserError if the page cannot be written.
    """
    overview = measure(sources)
    findings = {label: distribution(values) for label, values in sorted(overview.findings.items())}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PackagePath(__file__).parent), autoescape=True, undefined=jinja2.StrictUndefined
    )
    page = environment.get_template("page.html.jinja").render(
        title=title,
        images=IMAGES.get(title, ""),
        overview=overview,
        report=report,
        total=sum(overview.records.values()),
        figures=_figures(overview),
        histograms=[histogram("words", overview.words), histogram("sentences", overview.sentences)]
        if overview.words
        else [],
        labels=label_rows(overview),
        first_labels=_FIRST_LABELS,
        findings=findings,
        largest=max((values.high for values in findings.values()), default=0) or 1.0,
        pictures=_pictures(sources),
        long_report=LONG_REPORT,
    )
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, page)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None
    return overview


def _figures(overview: Overview) -> list[tuple[int, str, str]]:
    """The large figures at the top of the page: number, what it counts, a remark. Zeros are left out."""
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
    return [figure for figure in candidates if figure[0]]


@dataclass(frozen=True)
class LabelRow:
    """The counts of a label, and the parts of its bar in per cent of all records."""

    name: str
    present: int
    uncertain: int
    absent: int
    parts: list[tuple[str, float]]
    title: str


def label_rows(overview: Overview) -> list[LabelRow]:
    """One row per label, the most frequent first."""
    total = max(1, sum(overview.records.values()))
    rows = []
    for name, counts in sorted(overview.labels.items(), key=lambda entry: (-entry[1][1], entry[0])):
        kinds = {"present": counts[1], "uncertain": counts[-1], "absent": counts[0]}
        unknown = total - sum(kinds.values())
        title = ", ".join(f"{kind} {count:,}" for kind, count in {**kinds, "unknown": unknown}.items())
        parts = [(kind, 100 * count / total) for kind, count in kinds.items() if count]
        rows.append(LabelRow(name, **kinds, parts=parts, title=title))
    return rows


@dataclass(frozen=True)
class Bar:
    """The number of values from `low` to `high`, both included. `height` is in per cent of the highest bar."""

    low: int
    high: int
    count: int
    height: float


@dataclass(frozen=True)
class Histogram:
    """The bars of a histogram. `cut` says whether the last bar also counts values above its `high`."""

    name: str
    spread: Distribution
    bars: list[Bar]
    cut: bool


def histogram(name: str, values: Sequence[int]) -> Histogram:
    """The histogram of values. Values above the 99th percentile are counted in the last bar."""
    top = max(1, int(np.ceil(np.percentile(values, 99))))
    width = max(1, -(-(top + 1) // _BARS))
    edges = np.arange(0, top + width + 1, width)
    counts, _ = np.histogram(np.minimum(values, top), edges)
    bars = [
        Bar(int(low), int(low) + width - 1, int(count), 100 * int(count) / int(counts.max()))
        for low, count in zip(edges[:-1], counts, strict=True)
    ]
    return Histogram(name, distribution(values), bars, cut=max(values) > bars[-1].high)


def _pictures(sources: Mapping[str, Records]) -> list[tuple[str, str, str]]:
    """Pictures of evenly spaced records of all splits, with the outlines of their findings."""
    places = [(split, k) for split, source in sources.items() for k in range(len(source))]
    count = min(PICTURES, len(places))
    chosen = [places[k * (len(places) - 1) // max(1, count - 1)] for k in range(count)]
    return [_picture(split, sources[split][k]) for split, k in chosen]


def _picture(split: str, record: Record) -> tuple[str, str, str]:
    """The id, description and JPEG (base64) of a record."""
    color = cv2.cvtColor(cv2.resize(record.image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA), cv2.COLOR_GRAY2BGR)
    for finding in record.findings:
        mask = cv2.resize(finding.mask.astype(np.uint8), (_SIDE, _SIDE), interpolation=cv2.INTER_NEAREST)
        outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(color, outlines, -1, _OUTLINE, 2)
    about = ", ".join(filter(None, [split, record.view, *sorted({finding.label for finding in record.findings})]))
    jpeg = cv2.imencode(".jpg", color, [cv2.IMWRITE_JPEG_QUALITY, 88])[1].tobytes()
    return record.id, about, base64.b64encode(jpeg).decode()
