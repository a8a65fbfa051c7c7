"""Results as dataclasses, and as JSON in summary.json: fields are keys, and NaN is null."""

import dataclasses
import math
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeAlias

from afloc_jax.evaluation.files import json_of, json_text, write_folder
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates
from afloc_jax.evaluation.statistics.coverage import FewPositives, remark_on_few
from afloc_jax.evaluation.statistics.interval import Interval
from afloc_jax.files import AnyPath, csv_text
from afloc_jax.inference.model import Model
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.settings import Json
from data_pipelines.reading import Records

PER_SAMPLE_COLUMNS = ("id", "patient", "category", "metric", "threshold", "value", "note")
ScoreRow: TypeAlias = tuple[str, str, str, str, str, float, str]
"""A row of per_sample.csv: `PER_SAMPLE_COLUMNS`."""


@dataclass(frozen=True)
class Overall:
    """A metric of the complete data set."""

    overall: Interval


@dataclass(frozen=True)
class ByCategory(Overall):
    """A metric of the complete data set (mostly the mean over categories), and of each category."""

    per_category: Mapping[str, Interval]

    @staticmethod
    def mean_of(
        replicates: Replicates, names: Sequence[str], bootstrap: Bootstrap, of_auc: bool = False
    ) -> "ByCategory":
        """The intervals of replicates [C], one number per category, and of their mean. `of_auc`: see `limits_of`."""
        parts = {name: bootstrap.limits_of(replicates[c], of_auc) for c, name in enumerate(names)}
        return ByCategory(bootstrap.limits_of(replicates.mean_over(-1), of_auc), parts)


@dataclass(frozen=True)
class Account:
    """The origin of the numbers of a summary.

    Attributes:
        task: the name of the task.
        title: the name of the data set on the page.
        compatible: whether the published release is reproduced.
        framing: how images became squares.
        bootstrap: how intervals were computed, see `Bootstrap.to_dict`.
        settings: all settings; an evaluation with the same settings is not repeated.
        provenance: weights, data, code and versions.
    """

    task: str
    title: str
    compatible: bool
    framing: str
    bootstrap: Mapping[str, Json]
    settings: Mapping[str, Json]
    provenance: Mapping[str, Json]

    @property
    def interval(self) -> str:
        """The description of intervals for readers."""
        how = self.bootstrap
        auc = " (AUC: BCa)" if how.get("auc_interval", how["interval"]) != how["interval"] else ""
        return f"95 % {how['interval']} interval{auc}, {how['resamples']} resamples by {how['unit']}"


@dataclass(frozen=True)
class Result:
    """The base of results. Tasks add fields, which are keys of summary.json.

    `few_positives` has the classes with few positives, and what their intervals cover.
    """

    account: Account
    few_positives: Mapping[str, FewPositives] = field(kw_only=True, default_factory=dict)

    @property
    def remark_on_few(self) -> list[str]:
        """The sentence on classes with few positives, if there are any."""
        remark = remark_on_few(self.few_positives, self.account.bootstrap["unit"])
        return [remark] if remark else []

    def marked(self, name: str) -> str:
        """The name of a class in a Markdown table, with a star if it has few positives."""
        return name.replace("|", "/") + "*" * (name in self.few_positives)

    def to_json(self) -> dict[str, Json]:
        """The content of summary.json."""
        own = {part.name: getattr(self, part.name) for part in dataclasses.fields(self) if part.name != "account"}
        content: dict[str, Json] = json_of({**vars(self.account), **own})
        return content

    def to_markdown(self) -> str:
        """The content of summary.md: tables that are readable as plain text."""
        raise NotImplementedError

    def write(self, out: AnyPath, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Writes summary.md, summary.json, and the rows of per_sample.csv. Raises UserError if that fails."""
        texts = {"summary.md": self.to_markdown(), "summary.json": json_text(self.to_json())}
        write_folder(out, {"per_sample.csv": csv_text(columns, rows), **texts})

    @classmethod
    def read(cls, summary: Mapping[str, Json]) -> Self:
        """The result from the content of summary.json."""
        result: Self = read(cls, {**summary, "account": summary})
        return result


def read(kind: Any, value: Any) -> Any:
    """The inverse of `json_of`, in the type of an annotation. Keys without a field are ignored."""
    if hasattr(kind, "__dataclass_fields__"):
        kinds = typing.get_type_hints(kind)
        return kind(**{key: read(kinds[key], item) for key, item in value.items() if key in kinds})
    if kind is float and value is None:
        return math.nan
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) is Mapping:
        return {key: read(arguments[1], item) for key, item in value.items()}
    if typing.get_origin(kind) is Sequence:
        return [read(arguments[0], item) for item in value]
    return value


def evaluation_provenance(model: Model, source: Records, data_sha256: str) -> dict[str, Json]:
    """The provenance of the results of a model on records: weights, data and architecture."""
    return provenance(
        weights_sha256=model.weights_sha256,
        data_sha256=data_sha256,
        records=getattr(source, "content_hash", ""),
        trained_on=list(getattr(model.config, "trained_on", ())) or None,
        config_sha256=hash_of(model.config.architecture.plain()),
    )
