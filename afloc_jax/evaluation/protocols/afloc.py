"""The AFLoc protocol: IoU and Dice at five thresholds, CNR and the pointing game on the central 196 x 196 pixels.

Source: the paper (doi 10.1038/s41551-025-01574-7) and its release; `localization` has the scores and what is mended.
"""

from afloc_jax.evaluation.localization import ProtocolOptions, Scores, score
from afloc_jax.evaluation.protocols.base import LocalizationProtocol, Samples


def _scores(samples: Samples, compatible: bool, validation: Samples | None) -> Scores:
    return score(samples.truths, samples.heatmaps, ProtocolOptions(compatible=compatible))


PROTOCOL = LocalizationProtocol("afloc", "AFLoc", _scores)
