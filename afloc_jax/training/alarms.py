"""Warnings while a run trains: a loss or gradient norm that jumps, and embeddings that have become all alike.

They are computed on the host from metrics that the loop reads anyway, so no step is slower for them.
"""

import math
from collections import deque
from collections.abc import Mapping

import numpy as np

from afloc_jax.levels import LEVELS, LevelName
from afloc_jax.losses.settings import LossSettings

WINDOW = 101  # steps that the median is taken over
FEWEST = 20  # steps before the first warning; the first ones of a run change fast
_FACTOR, _DEVIATIONS = 2.0, 10.0  # a spike is above that many medians, and median absolute deviations above the median
CALM = 20  # steps without a spike after which the next one is told again
EQUAL = 1e-3  # difference from the loss of equal similarities, and of an effective rank from 1
COLLAPSED_STEPS = 20  # steps in a row that make a collapse


class Spikes:
    """The steps at which a number jumps above its running median."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._seen: deque[float] = deque(maxlen=WINDOW)
        self._last = -math.inf  # step of the last spike

    def see(self, step: int, value: float) -> tuple[bool, str]:
        """Whether the value of this step is a spike, and a warning; empty but at the first one of an episode."""
        spike, warning = False, ""
        if len(self._seen) >= FEWEST:
            median = float(np.median(self._seen))
            deviation = float(np.median(np.abs(np.array(self._seen) - median)))
            spike = value > max(_FACTOR * median, median + _DEVIATIONS * deviation)
            if spike and step - self._last > CALM:
                warning = (
                    f"step {step}: {self._name} {value:.3g} is {value / median if median else math.inf:.1f} times its "
                    f"median over the last {len(self._seen)} steps"
                )
        if spike:
            self._last = step
        self._seen.append(value)
        return spike, warning


class Alarms:
    """What a run is warned of.

    A level has collapsed where all its similarities are equal, or where all embeddings of one of its sides are
    multiples of one vector. Equal similarities have a loss of 2 log K in groups of K pairs ("softmax" alone), and such
    embeddings an effective rank of 1.
    """

    def __init__(self, settings: LossSettings, batch_size: int) -> None:
        self._equal_loss = 2 * math.log(settings.group_size(batch_size))
        # With other pairs in the sums, equal similarities have another loss.
        known = {"report"} if settings.contrast_unit == "unit" else {"report", "sentence", "word"}
        known -= {"sentence"} if settings.hard_negatives else set()
        self._known = set() if settings.twins == "mask" or settings.objective == "sigmoid" else known
        self._collapsed_for: dict[LevelName, int] = dict.fromkeys(LEVELS, 0)
        self._spikes = {name: Spikes(title) for name, title in (("loss", "loss"), ("grad_norm", "gradient norm"))}
        self._count = 0

    def see(self, step: int, values: Mapping[str, float]) -> list[str]:
        """The warnings of a step, each once an episode. `values` are those of `StepMetrics.named`."""
        warnings = []
        for name, spikes in self._spikes.items():
            spike, warning = spikes.see(step, values[name])
            self._count += spike
            warnings += [warning] if warning else []
        for level in LEVELS:
            signs = self._signs(level, values)
            self._collapsed_for[level] = self._collapsed_for[level] + 1 if signs else 0
            if self._collapsed_for[level] == COLLAPSED_STEPS:
                warnings.append(
                    f"step {step}: the embeddings of the {level} level have collapsed for {COLLAPSED_STEPS} steps: "
                    f"{' and '.join(signs)}; lower config.optimizer.lr, or raise config.training.batch_size"
                )
        return warnings

    def _signs(self, level: LevelName, values: Mapping[str, float]) -> list[str]:
        """What says that a level has collapsed, in words."""
        signs = []
        loss = values.get(f"loss/{level}", math.inf)
        if level in self._known and abs(loss - self._equal_loss) < EQUAL:
            signs.append(f"loss/{level} is that of equal similarities, {self._equal_loss:.3f}")
        for side in ("image", "text"):
            if values.get(f"rank/{side}/{level}", math.inf) < 1 + EQUAL:
                signs.append(f"rank/{side}/{level} is 1, that of multiples of one vector")
        return signs

    def interval(self) -> dict[str, float]:
        """Spikes since the last call, and the number of levels that are collapsed now."""
        count, self._count = self._count, 0
        collapsed = sum(steps >= COLLAPSED_STEPS for steps in self._collapsed_for.values())
        return {"spikes": float(count), "collapsed_levels": float(collapsed)}
