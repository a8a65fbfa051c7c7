"""The localisation protocol: how truth is read, what is scored, and a function from samples to scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.truth.sample import Drawing, Truth


@dataclass(frozen=True)
class Samples:
    """Truths with one heat map each, in the same order. Maps may come from a generator, and are read once.

    A map is that of the padded square, or for scores in original pixels that of the original image.

    A map is None if another process scores the sample (sharing.py).
    """

    truths: Sequence[Truth]
    heatmaps: Iterable[np.ndarray | None]


@dataclass(frozen=True)
class LocalizationProtocol:
    """A protocol.

    Attributes:
        name: the value of `--protocol`.
        scores: a function (samples, options, validation samples or None) -> `Scores`.
        options: thresholds, margin, and whether truth, prompts and scores are those of the release.
        tuned: whether thresholds are chosen on validation samples, which `scores` then needs.
        negatives: whether samples without the finding are scored as well.
        boxes: whether the truth is boxes, also if a file has masks.
        absent: whether prompts without a finding are asked as well, as many of a class as it has findings.
    """

    name: str
    scores: Callable[[Samples, ProtocolOptions, Samples | None], Scores]
    options: ProtocolOptions = field(default_factory=ProtocolOptions)
    tuned: bool = False
    negatives: bool = False
    boxes: bool = False
    absent: bool = False

    @property
    def compatible(self) -> bool:
        """Whether the release is reproduced with its defects."""
        return self.options.compatible

    @property
    def original(self) -> bool:
        """Whether the pixels of the original image are compared."""
        return self.options.at == "original"

    @property
    def drawing(self) -> Drawing:
        """How masks are drawn."""
        return Drawing(self.compatible, self.boxes, original=self.original)

    def score(self, samples: Samples, validation: Samples | None = None) -> Scores:
        """The scores of all samples. Raises UsageError if the protocol needs validation samples and gets none."""
        if self.tuned and validation is None:
            raise UsageError(
                f"protocol {self.name} chooses its thresholds on validation data; "
                "give validation truth and validation heat maps"
            )
        return self.scores(samples, self.options, validation)
