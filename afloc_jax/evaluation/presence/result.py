"""The result of an evaluation of presence: summary.json and summary.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from afloc_jax.evaluation.presence.metrics import BY_NAME, KINDS, METRICS, PARTS, SENSITIVITY
from afloc_jax.evaluation.results import ByCategory, Result
from afloc_jax.evaluation.statistics.discrimination import ReliabilityBin


@dataclass(frozen=True)
class Kept:
    """What is said of phrases that name nothing in a chest, asked of every scored image.

    Attributes:
        median: the median of presence over phrases and images.
        highest: the largest median of a phrase.
        judged_present: the share of phrases and images judged present.
        phrases: the median of each phrase.
    """

    median: float
    highest: float
    judged_present: float
    phrases: Mapping[str, float]


@dataclass(frozen=True)
class PresenceResult(Result):
    """How well presence agrees with the labels of a data set.

    Attributes:
        n: the number of records.
        questions: the number of questions, each of an image and a class, by name or by phrase.
        labels: where labels come from, see `labels.read_labels`.
        calibration: the data of the model's fit.
        own_fit: the classes with a fit of their own.
        positives, negatives: for each class the scored records that show it and lack it.
        metrics: by name: a metric of `METRICS`, a part of `PARTS`, and "", "by name" or "by phrase".
        base_brier: for all classes and each, the Brier score of the share of positives of each class.
        reliability: by part, the reliability table of all questions.
        reliability_of_classes: the same of each class, with the model's fit.
        selective: by part, coverage and risk, see `metrics.selective_risk`.
        kept: by kind, what is said of phrases that name nothing.
    """

    n: int
    questions: int
    labels: str
    calibration: str
    own_fit: Sequence[str]
    positives: Mapping[str, int]
    negatives: Mapping[str, int]
    metrics: Mapping[str, ByCategory]
    base_brier: Mapping[str, float]
    reliability: Mapping[str, Sequence[ReliabilityBin]]
    reliability_of_classes: Mapping[str, Sequence[ReliabilityBin]]
    selective: Mapping[str, Sequence[Sequence[float]]]
    kept: Mapping[str, Kept] = field(default_factory=dict)

    @property
    def parts(self) -> list[str]:
        """The parts that were scored: without a validation split no class is left out."""
        return [part for part in PARTS if f"ece {part}" in self.metrics]

    def to_markdown(self) -> str:
        lines = [
            "# Presence",
            "",
            f"{self.n} records, {self.questions} questions, labels: {self.labels}. Fitted on {self.calibration}. "
            f"Value [{self.account.interval}].",
            f"FPR at 90 %: false-positive rate at the threshold of {SENSITIVITY:.0%} sensitivity.",
            *self.remark_on_few,
        ]
        for part in self.parts:
            about = "the model's fit" if part == PARTS[0] else "each class by a pooled fit without it"
            lines += ["", f"## Classes {part}: {about}", ""]
            titles = " | ".join(metric.title for metric in METRICS)
            lines += [f"| | positive / negative | {titles} | Brier of the share |", "|---|---|" + "---|" * 5]
            for kind in KINDS:
                values = [self.metrics[key_of(name, part, kind)].overall for name in BY_NAME]
                spoken = f"all classes{', ' + kind if kind else ''}"
                base = f"{self.base_brier['']:.3f}"
                lines.append(f"| **{spoken}** | | {' | '.join(map(str, values))} | {base} |")
            for name, positives in self.positives.items():
                values = [self.metrics[key_of(metric, part)].per_category[name] for metric in BY_NAME]
                count = f"{positives} / {self.negatives[name]}"
                base = f"{self.base_brier[name]:.3f}"
                lines.append(f"| {self.marked(name)} | {count} | {' | '.join(map(str, values))} | {base} |")
        lines += ["", "## Phrases that name nothing in a chest", ""]
        lines += ["| | median | largest median of a phrase | judged present |", "|---|---|---|---|"]
        for kind, kept in self.kept.items():
            spoken = kind.replace("_", " ")
            lines.append(f"| {spoken} | {kept.median:.3f} | {kept.highest:.3f} | {kept.judged_present:.1%} |")
        return "\n".join(lines) + "\n"


def key_of(metric: str, part: str, kind: str = "") -> str:
    """The key of a metric in summary.json.

    >>> key_of("ece", "left out", "by name")
    'ece left out by name'
    """
    return " ".join(word for word in (metric, part, kind) if word)
