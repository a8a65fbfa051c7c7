"""The result of a transfer: summary.json and summary.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afloc_jax.evaluation.results import ByCategory, Overall, Result
from afloc_jax.evaluation.transfer.metrics import BY_NAME, UNTRAINED, key_of
from afloc_jax.settings import Json


@dataclass(frozen=True)
class Share:
    """A share of the labels.

    Attributes:
        name, title: see `subsets.Subset`.
        patients, records: how many of them the head learned from.
        positives: for each class the records among them that show it.
    """

    name: str
    title: str
    patients: int
    records: int
    positives: Mapping[str, int]


@dataclass(frozen=True)
class Baseline:
    """Another system on the same records. `metrics` has the keys of the model's."""

    metrics: Mapping[str, ByCategory]


@dataclass(frozen=True)
class TransferResult(Result):
    """The metrics of heads that learned from shares of the labels.

    Attributes:
        n, n_left_out: the numbers of test records, and of those without a label.
        encoder: "frozen", or "trained" with the head.
        target: "labels" or "masks", see `TransferSettings`.
        head: a description of the head and of how it was fitted.
        shares: the shares of the labels, smallest to largest as asked for.
        validation: the number of validation records.
        n_per_category, positives: for each class the test records with a known label, and those that show it.
        metrics: by `key_of`.
        baselines: other systems, `UNTRAINED` among them.
        differences: by `key_of`, the model less `UNTRAINED`, over the same resamples.
        chosen: by system, then share: what validation chose.
        left_out: classes that could not be learned or scored.
    """

    n: int
    n_left_out: int
    encoder: str
    head: str
    shares: Sequence[Share]
    validation: int
    n_per_category: Mapping[str, int]
    positives: Mapping[str, int]
    metrics: Mapping[str, ByCategory]
    baselines: Mapping[str, Baseline]
    differences: Mapping[str, Overall]
    chosen: Mapping[str, Mapping[str, Mapping[str, Json]]]
    left_out: Sequence[str] = field(kw_only=True, default=())
    target: str = field(kw_only=True, default="labels")

    @property
    def remark_on_left_out(self) -> str:
        """The sentence on classes that were left out; empty if there are none."""
        why = "a split has no mask of them" if self.target == "masks" else "a split shows them always or never"
        return f"Left out, since {why}: {', '.join(self.left_out)}." if self.left_out else ""

    @property
    def metric_names(self) -> list[str]:
        """The metrics, in the order of the table."""
        return [name for name in BY_NAME if any(key.startswith(f"{name} ") for key in self.metrics)]

    @property
    def systems(self) -> dict[str, Mapping[str, ByCategory]]:
        """The metrics of the model, and of the other systems."""
        return {"model": self.metrics, **{name: one.metrics for name, one in self.baselines.items()}}

    def to_markdown(self) -> str:
        lines = [
            f"# Transfer, encoder {self.encoder}",
            "",
            f"{self.n} test records, {self.validation} validation records. {self.head} "
            f"Value [{self.account.interval}].",
            *filter(None, [self.remark_on_left_out]),
            *self.remark_on_few,
        ]
        for name in self.metric_names:
            lines += ["", f"## {BY_NAME[name].title}", ""]
            head = "".join(f" {share.title} ({share.records} records) |" for share in self.shares)
            lines += [f"| | |{head}", "|---|---|" + "---|" * len(self.shares)]
            keys = [key_of(name, share.name) for share in self.shares]
            for system, metrics in self.systems.items():
                row = " | ".join(str(metrics[key].overall) for key in keys)
                lines.append(f"| **all classes** | {system} | {row} |")
            if self.differences:
                row = " | ".join(str(self.differences[key].overall) for key in keys)
                lines.append(f"| **all classes** | model less {UNTRAINED} | {row} |")
            for category in self.n_per_category:
                for system, metrics in self.systems.items():
                    row = " | ".join(str(metrics[key].per_category[category]) for key in keys)
                    lines.append(f"| {self.marked(category)} | {system} | {row} |")
        lines += ["", "## What validation chose", "", "| share | system | chosen |", "|---|---|---|"]
        for system, by_share in self.chosen.items():
            for share in self.shares:
                chosen = ", ".join(f"{key} {_short(value)}" for key, value in by_share[share.name].items())
                lines.append(f"| {share.title} | {system} | {chosen} |")
        return "\n".join(lines) + "\n"


def _short(value: Json) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
