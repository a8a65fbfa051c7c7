"""The samples with the worst scores, from per_sample.csv."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from afloc_jax.evaluation.localization.scores import Outcome
from afloc_jax.files import Path
from afloc_jax.tables import read_table


@dataclass(frozen=True)
class Sample:
    """The rows of one sample."""

    id: str
    category: str
    prompt: str
    outcomes: set[Outcome] = field(default_factory=set)
    values: dict[str, list[float]] = field(default_factory=dict)

    @property
    def iou(self) -> float | None:
        return self._mean("iou")

    @property
    def cnr(self) -> float | None:
        return self._mean("cnr")

    @property
    def why(self) -> str:
        """The reason why the sample failed; empty if it did not."""
        if Outcome.FALSE_POSITIVE in self.outcomes:
            return "predicted where there is nothing"
        if self.outcomes & {Outcome.REJECTED, Outcome.EMPTY} and not sum(self.values.get("iou", [0.0])):
            return "nothing predicted"
        if self.values.get("f1", [1.0])[0] == 0:
            return "no box matches"
        return "maximum outside the truth" if self.values.get("pointing", [1.0])[0] < 0.5 else ""

    def _mean(self, metric: str) -> float | None:
        return float(np.mean(self.values[metric])) if metric in self.values else None


@dataclass(frozen=True)
class Failures:
    """The worst samples, the number of failures by reason, and the numbers of failed and scored samples."""

    samples: Sequence[Sample] = ()
    kinds: dict[str, int] = field(default_factory=dict)
    failed: int = 0
    scored: int = 0


def worst_samples(path: Path, most: int) -> Failures:
    """The failures of per_sample.csv, with at most `most` samples of least overlap, taken from each category in turn.

    A sample fails if the maximum of its map lies outside the truth, if none of its boxes matches, if nothing is
    predicted at any threshold, or if something is predicted on an image without the finding. Without the file
    there are no failures.
    """
    if not path.is_file():
        return Failures()
    samples: dict[str, Sample] = {}
    for row in read_table(path).whole():
        sample = samples.setdefault(row["id"], Sample(row["id"], row["category"], row["label_text"]))
        # Other parts of a note, such as a threshold, are ignored.
        sample.outcomes.update(Outcome(part) for part in row["note"].split("; ") if part in set(Outcome))
        if row["value"]:
            sample.values.setdefault(row["metric"], []).append(float(row["value"]))
    scored = [sample for sample in samples.values() if Outcome.NO_TRUTH not in sample.outcomes]
    failed = [sample for sample in scored if sample.why]
    failed.sort(key=lambda sample: (sample.iou is not None and sample.iou, sample.cnr or 0.0))
    kinds = dict(Counter(sample.why for sample in failed).most_common())
    return Failures(_in_turn(failed)[:most], kinds, len(failed), len(scored))


def _in_turn(failed: Sequence[Sample]) -> list[Sample]:
    """The worst sample of each category, then the second worst of each, and so on."""
    seen: Counter[str] = Counter()
    ranked = []
    for sample in failed:
        ranked.append((seen[sample.category], sample))
        seen[sample.category] += 1
    return [sample for _, sample in sorted(ranked, key=lambda pair: pair[0])]
