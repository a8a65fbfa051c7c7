"""What a localisation protocol is: how truth is read, what is scored, and one function from samples to scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.scores import Scores
from afloc_jax.evaluation.truth.sample import Truth


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

    def score(self, samples: Samples, validation: Samples | None = None) -> Scores:
        """Scores of all samples. Raises `UsageError` without the validation samples that the protocol needs."""
        if self.tuned and validation is None:
            raise UsageError(
                f"protocol {self.name} chooses its thresholds on validation data; "
                "give validation truth and validation heat maps"
            )
        return self.scores(samples, self.options, validation)

    def with_options(
        self, thresholds: Sequence[float] | None = None, margin: int | None = None, compatible: bool = False
    ) -> "LocalizationProtocol":
        """The protocol with other thresholds or another margin, None leaves its own, or as the release has it.

        Raises `UsageError` for values that `ProtocolOptions` refuses, and where validation data choose the thresholds.
        """
        if self.tuned and not (thresholds is None and margin is None):
            raise UsageError(
                f"protocol {self.name} scores the whole image at thresholds that validation data choose; "
                "leave --thresholds and --margin out"
            )
        options = replace(self.options, compatible=compatible)
        try:
            if thresholds is not None:
                options = replace(options, thresholds=tuple(thresholds))
            if margin is not None:
                options = replace(options, margin=margin)
        except ValueError as error:
            raise UsageError(str(error)) from None
        return replace(self, options=options)
