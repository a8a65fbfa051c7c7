"""Phrase grounding as BioViL introduced it: CNR, mIoU and the pointing game (P@1) of phrases against boxes.

Source: Boecking et al., ECCV 2022 (doi 10.1007/978-3-031-20059-5_1). The whole map is scored, without a margin. CNR is
that of the raw map: it is the same for every scale and offset of a map. Its sign is kept, as the AFLoc release does:
a map that is coldest at the finding is no good, though the formula as printed takes the absolute value. mIoU is the
mean over the thresholds 0.1 to 0.5 of the map scaled to [-1, 1], so that maps that are no cosines can be scored.
"""

from afloc_jax.evaluation.localization.afloc import map_scores
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol
from afloc_jax.evaluation.localization.scores import ProtocolOptions

PROTOCOL = LocalizationProtocol(
    "grounding",
    "Phrase grounding (BioViL)",
    map_scores,
    ProtocolOptions(margin=0, protocol="grounding"),
    boxes=True,
)
