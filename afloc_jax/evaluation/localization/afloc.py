"""The AFLoc protocol: IoU and Dice at five thresholds, CNR and the pointing game on the central 196 x 196 pixels.

Source: the paper (doi 10.1038/s41551-025-01574-7) and its release; `localization` has the scores and what is mended.
"""

from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.scores import ProtocolOptions, Scores, score


def map_scores(samples: Samples, options: ProtocolOptions, validation: Samples | None) -> Scores:
    """Scores of maps against places, with nothing chosen on validation data."""
    return score(samples.truths, samples.heatmaps, options)


PROTOCOL = LocalizationProtocol("afloc", "AFLoc", map_scores)
