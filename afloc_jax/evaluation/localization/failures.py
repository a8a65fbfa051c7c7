"""The samples that went worst, from per_sample.csv."""

import csv
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from afloc_jax.evaluation.localization.outcomes import Outcome, outcomes_of
from afloc_jax.files import Path


@dataclass(frozen=True)
class Failure:
    """A sample that failed, its scores over the thresholds, and why."""

    id: str
    category: str
    prompt: str
    iou: float | None
    cnr: float | None
    why: str


@dataclass(frozen=True)
class Failures:
    """What failed: the worst samples, how often for which reason, and how many of how many."""

    samples: Sequence[Failure] = ()
    kinds: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    scored: int = 0


@dataclass
class _Sample:
    id: str
    category: str
    prompt: str
    outcomes: set[Outcome] = field(default_factory=set)
    values: dict[str, list[float]] = field(default_factory=dict)

    def mean(self, metric: str) -> float | None:
        return float(np.mean(self.values[metric])) if metric in self.values else None

    def why(self) -> str:
        """Why it failed; empty if it did not."""
        if Outcome.FALSE_POSITIVE in self.outcomes:
            return "predicted where there is nothing"
        if self.outcomes & {Outcome.REJECTED, Outcome.EMPTY} and not sum(self.values.get("iou", [0.0])):
            return "nothing predicted"
        return "maximum outside the truth" if self.values.get("pointing", [1.0])[0] < 0.5 else ""


def worst_samples(path: Path, most: int) -> Failures:
    """What failed: how often and why, and the samples with the least overlap, at most `most`, each category in turn.

    A sample fails if its map's maximum lies outside the truth, if nothing is predicted at any threshold, or if
    something is predicted on an image without the finding. Nothing failed where there is no such file.
    """
    if not path.is_file():
        return Failures()
    samples: dict[str, _Sample] = {}
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            sample = samples.setdefault(row["id"], _Sample(row["id"], row["category"], row["label_text"]))
            sample.outcomes |= outcomes_of(row["note"])
            if row["value"]:
                sample.values.setdefault(row["metric"], []).append(float(row["value"]))
    scored = [sample for sample in samples.values() if Outcome.NO_TRUTH not in sample.outcomes]
    failed = [
        Failure(sample.id, sample.category, sample.prompt, sample.mean("iou"), sample.mean("cnr"), why)
        for sample in scored
        if (why := sample.why())
    ]
    failed.sort(key=lambda failure: (failure.iou is not None and failure.iou, failure.cnr or 0.0))
    kinds = dict(Counter(failure.why for failure in failed).most_common())
    return Failures(_in_turn(failed)[:most], kinds, len(failed), len(scored))


def _in_turn(failed: Sequence[Failure]) -> list[Failure]:
    """The worst of each category, then the second worst of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for failure in failed:
        ranked.append((seen[failure.category], failure))
        seen[failure.category] += 1
    return [failure for _, failure in sorted(ranked, key=lambda pair: pair[0])]
