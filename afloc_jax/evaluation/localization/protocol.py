"""What a localisation protocol is: how truth is read, what is scored, and one function from samples to scores."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization.scores import ProtocolOptions, Scores
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
        options: thresholds and margin; whether scores are compatible is said with each call.
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

    def score(self, samples: Samples, compatible: bool = False, validation: Samples | None = None) -> Scores:
        """Scores of all samples. Raises `UsageError` without the validation samples that the protocol needs."""
        if self.tuned and validation is None:
            raise UsageError(
                f"protocol {self.name} chooses its thresholds on validation data; "
                "give validation truth and validation heat maps"
            )
        return self.scores(samples, replace(self.options, compatible=compatible), validation)

    def with_options(
        self, thresholds: Sequence[float] | None = None, margin: int | None = None
    ) -> "LocalizationProtocol":
        """The protocol with other thresholds or another margin; None leaves its own.

        Raises `UsageError` for values that `ProtocolOptions` refuses, and where validation data choose the thresholds.
        """
        given: dict[str, Any] = {} if margin is None else {"margin": margin}
        try:
            given |= {} if thresholds is None else {"thresholds": tuple(float(t) for t in thresholds)}
        except (TypeError, ValueError):
            raise UsageError(f"thresholds are {thresholds!r}; give several numbers") from None
        if not isinstance(margin, int | None):
            raise UsageError(f"margin is {margin!r}; give a whole number of pixels")
        if given and self.tuned:
            raise UsageError(
                f"protocol {self.name} scores the whole image at thresholds that validation data choose; "
                "leave --thresholds and --margin out"
            )
        try:
            return replace(self, options=replace(self.options, **given))
        except ValueError as error:
            raise UsageError(str(error)) from None
