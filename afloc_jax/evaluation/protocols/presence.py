"""Scores of samples of which some show the finding and some do not; masks are predicted or nothing is."""

from functools import cached_property
from typing import Any

import numpy as np

from afloc_jax.evaluation.localization import ProtocolOptions, Scores
from afloc_jax.evaluation.statistics import Bootstrap


class PresenceScores(Scores):
    """`values` hold [n] arrays. Predicted pixels are [n, 1]; a sample without any says "nothing here"."""

    @cached_property
    def present(self) -> np.ndarray:
        """[n] bool: whether the image shows the finding."""
        return np.array([truth.present for truth in self.truths])

    def note(self, sample: int, metric: str, k: int) -> str:
        """What the system made of a sample, where a value of 0 or none leaves it open."""
        predicted = self.predicted_pixels[sample].any()
        if not self.truths[sample].present:
            return "false positive" if predicted else "true negative"
        if self.empty_truth[sample]:
            return "no truth in the scored region"
        return "" if predicted or metric == "pointing" else "empty prediction"

    def facts(self, bootstrap: Bootstrap) -> dict[str, Any]:
        """Counts of the four outcomes by category."""
        predicted = self.predicted_pixels.any(axis=1)
        outcomes = {
            "true positives": self.present & predicted,
            "missed": self.present & ~predicted,
            "false positives": ~self.present & predicted,
            "true negatives": ~self.present & ~predicted,
        }
        names, index = self.categories, self.category_index
        return {
            "margin": 0,
            "outcomes": {
                outcome: dict(zip(names, np.bincount(index[rows], minlength=len(names)).tolist(), strict=True))
                for outcome, rows in outcomes.items()
            },
        }


def presence_values(iou: np.ndarray, dice: np.ndarray, hit: np.ndarray, true_positive: np.ndarray) -> dict:
    """The metrics of such scores in the order of tables, [n] each: IoU over all, over true positives, Dice, hit."""
    return {"iou": iou, "iou_true_positive": np.where(true_positive, iou, np.nan), "dice": dice, "pointing": hit}


def presence_options(compatible: bool) -> ProtocolOptions:
    """The options of such scores: the whole image, and thresholds that are not the protocol's to say."""
    return ProtocolOptions(margin=0, compatible=compatible, protocol="chexlocalize")
