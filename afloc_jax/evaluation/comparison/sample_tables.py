"""Reading of per_sample.csv of any evaluation, for `afloc compare`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.numbers import images_shown, part_of, read_object
from afloc_jax.evaluation.task import JsonObject
from afloc_jax.files import Path
from afloc_jax.settings import Json
from afloc_jax.tables import read_table

NOTED = ("protocol", "compatible", "framing", "prompt_set", "aggregation", "margin", "at", "thresholds_chosen_on")


class Key(NamedTuple):
    """The key by which the scores of two evaluations are paired. Its text names the score in messages."""

    id: str
    category: str
    metric: str = ""
    threshold: str = ""

    def __str__(self) -> str:
        """The parts that are not empty, none of which is report text."""
        return " / ".join(part for part in self if part)


class Decision(NamedTuple):
    """A row of classification. The label and the prediction are 1 or 0; unknown ones are NaN."""

    label: float
    probability: float
    predicted: float


@dataclass(frozen=True)
class SampleTable:
    """The samples of one system: of per_sample.csv in a folder, with facts from its summary.json, or of a table.

    Attributes:
        name: the result folder, or the system of a table.
        patients, images: the patient and the image of each id.
        scores: a score per sample, metric and threshold (all tasks but classification), else empty.
        decisions: a decision per sample and class (classification), else empty.
        settings: settings that are noted if they differ.
        mask_thresholds: for each class the threshold chosen on validation data.
        provenance: weights, data and versions.
        shown: what the images are; empty where that is not known.
    """

    name: str
    patients: Mapping[str, str]
    images: Mapping[str, str]
    scores: Mapping[Key, float]
    decisions: Mapping[Key, Decision]
    settings: Mapping[str, Json] = field(default_factory=dict)
    mask_thresholds: Mapping[str, Json] = field(default_factory=dict)
    provenance: Mapping[str, Json] = field(default_factory=dict)
    shown: str = ""

    @property
    def keys(self) -> Sequence[Key]:
        """The keys of its rows, in their order."""
        return [*self.scores, *self.decisions]


def read_samples(folder: Path) -> SampleTable:
    """The table of a result folder. Raises UserError for a folder without usable per-sample scores."""
    path = folder / "per_sample.csv"
    if not path.is_file():
        raise UserError(f"{path}: No such file or directory; give a folder that an evaluation wrote")
    table = read_table(path)
    lines = table.whole()
    scored = set(table.columns) >= {"id", "category", "metric", "value"}
    if not scored and not set(table.columns) >= {"id", "category", "label", "probability", "predicted"}:
        raise UserError(f"{path}: not per-sample scores; it lacks columns that an evaluation writes")
    scores: dict[Key, float] = {}
    decisions: dict[Key, Decision] = {}
    for line in lines:
        names = (line["metric"] or "", line.get("threshold") or "") if scored else ()
        key = Key(line["id"], line["category"], *names)
        if key in scores or key in decisions:
            raise UserError(f"{path}, row {line.number}: {key} comes twice; keep one of the two rows")
        try:
            if scored:
                scores[key] = _number(line["value"])
            else:
                values = (float(line["probability"]), float(line["predicted"]))
                decisions[key] = Decision(_number(line["label"]), *values)
        except (TypeError, ValueError):
            raise UserError(f"{path}, row {line.number}: {key} holds no number") from None
    if not lines:
        raise UserError(f"{path}: holds no sample")
    patients = {line["id"]: line.get("patient") or "" for line in lines}
    # A finding of a record has the id of the record, "#" and its number.
    images = {line["id"]: line.get("image") or line["id"].rpartition("#")[0] or line["id"] for line in lines}
    summary = _summary(folder)
    settings = {key: summary[key] for key in NOTED if key in summary}
    points = part_of(summary, "operating_points")
    thresholds = {name: part_of(points, name).get("mask_threshold") for name in points}
    return SampleTable(
        str(folder),
        patients,
        images,
        scores,
        decisions,
        settings,
        thresholds,
        provenance=part_of(summary, "provenance"),
        shown=images_shown(summary) if summary else "",
    )


def images_in(tables: Sequence[SampleTable]) -> str:
    """The sentence on what the images of all tables are. They have the same samples, so one that knows is enough."""
    known = "; ".join(dict.fromkeys(table.shown for table in tables if table.shown))
    return f"Images: {known}." if known else "What the images show is not stated in the tables of samples."


def _summary(folder: Path) -> JsonObject:
    """The content of summary.json; empty where there is none."""
    try:
        return read_object(folder / "summary.json")
    except UserError:
        return {}


def _number(cell: str) -> float:
    return float(cell) if cell else float("nan")
