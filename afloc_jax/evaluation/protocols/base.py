"""What a localisation protocol is: how truth is read, and one function from samples to scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization import Scores
from afloc_jax.evaluation.truth import Truth


@dataclass(frozen=True)
class Samples:
    """Truths and a heat map for each, in the same order; maps may come from a generator and are read once."""

    truths: Sequence[Truth]
    heatmaps: Iterable[np.ndarray]


@dataclass(frozen=True)
class LocalizationProtocol:
    """A protocol by name.

    Attributes:
        name: what `--protocol` takes.
        title: for readers.
        scores: (samples, compatible, validation samples or None) -> `Scores`.
        tuned: thresholds are chosen on validation samples, which `scores` then needs.
        negatives: samples without the finding are scored too.
        boxes: the truth is boxes, also where a file has masks.
    """

    name: str
    title: str
    scores: Callable[[Samples, bool, Samples | None], Scores]
    tuned: bool = False
    negatives: bool = False
    boxes: bool = False

    def score(self, samples: Samples, compatible: bool = False, validation: Samples | None = None) -> Scores:
        """Scores of all samples. Raises `UsageError` without the validation samples that the protocol needs."""
        if self.tuned and validation is None:
            raise UsageError(
                f"protocol {self.name} chooses its thresholds on validation data; "
                "give validation truth and validation heat maps"
            )
        return self.scores(samples, compatible, validation)
