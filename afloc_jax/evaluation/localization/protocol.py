"""A localisation protocol: how truth is read, what is scored, and one function from samples to scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.truth.sample import Drawing, Truth


@dataclass(frozen=True)
class Samples:
    """Truths with a heat map for each, in the same order; maps may come from a generator and are read once."""

    truths: Sequence[Truth]
    heatmaps: Iterable[np.ndarray]


@dataclass(frozen=True)
class LocalizationProtocol:
    """A protocol by name.

    Attributes:
        name: what `--protocol` takes.
        title: for readers.
        scores: (samples, options, validation samples or None) -> `Scores`.
        options: thresholds, margin, and whether truth, prompts and scores are those of the release.
        tuned: thresholds are chosen on validation samples, which `scores` then needs.
        negatives: samples without the finding are scored too.
        boxes: the truth is boxes, also where a file has masks.
    """

    name: str
    title: str
    scores: Callable[[Samples, ProtocolOptions, Samples | None], Scores]
    options: ProtocolOptions = field(default_factory=ProtocolOptions)
    tuned: bool = False
    negatives: bool = False
    boxes: bool = False

    @property
    def compatible(self) -> bool:
        """Whether everything is as in the release, defects included."""
        return self.options.compatible

    @property
    def drawing(self) -> Drawing:
        """How places are drawn."""
        return Drawing(self.compatible, self.boxes)

    def score(self, samples: Samples, validation: Samples | None = None) -> Scores:
        """Scores of all samples. Raises `UsageError` without the validation samples that the protocol needs."""
        if self.tuned and validation is None:
            raise UsageError(
                f"protocol {self.name} chooses its thresholds on validation data; "
                "give validation truth and validation heat maps"
            )
        return self.scores(samples, self.options, validation)
