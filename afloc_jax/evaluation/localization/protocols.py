"""The table of localisation protocols. docs/protocols.md defines them.

AFLoc scores IoU and Dice at five thresholds, CNR and the pointing game on the central 196 x 196 pixels. Source: the
paper (doi 10.1038/s41551-025-01574-7) and its release; `scores` lists the corrected defects.

Phrase grounding, as BioViL introduced it (Boecking et al., ECCV 2022, doi 10.1007/978-3-031-20059-5_1), scores phrases
against boxes on the whole map, without a margin. CNR is that of the raw map: it is the same for every scale and offset
of a map. Its sign is kept, as in the AFLoc release: the printed formula takes the absolute value, which would favour a
map whose minimum is at the finding. mIoU is the mean over the thresholds 0.1 to 0.5 of the map scaled to [-1, 1], so
that maps that are not cosines can be scored.
"""

from collections.abc import Sequence
from dataclasses import replace

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.localization import chexlocalize, generalised
from afloc_jax.evaluation.localization.options import ProtocolOptions
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol, Samples
from afloc_jax.evaluation.localization.scores import Scores, score
from data_pipelines.constants import Pixels


def _map_scores(samples: Samples, options: ProtocolOptions, validation: Samples | None) -> Scores:
    """The scores of maps against masks, without validation data."""
    return score(samples.truths, samples.heatmaps, options)


AFLOC = LocalizationProtocol("afloc", _map_scores)
GROUNDING = LocalizationProtocol("grounding", _map_scores, ProtocolOptions(margin=0, protocol="grounding"), boxes=True)
PROTOCOLS = {protocol.name: protocol for protocol in (AFLOC, chexlocalize.PROTOCOL, GROUNDING, generalised.PROTOCOL)}


def get_protocol(
    name: str,
    thresholds: Sequence[float] | None = None,
    margin: int | None = None,
    compatible: bool = False,
    at: Pixels | None = None,
) -> LocalizationProtocol:
    """The protocol of a name, with its own thresholds (on the scaled map) and margin (pixels of 224) where None.

    A protocol that chooses its thresholds on validation data compares the pixels of the square, or with `at` those of
    the original image, which is the default if `compatible`. Other protocols are defined on the square.

    Raises UsageError for an unknown protocol, for values that `ProtocolOptions` refuses, for thresholds or a margin of
    a protocol that chooses its thresholds on validation data, and for original pixels in another protocol.
    """
    if name not in PROTOCOLS:
        raise UsageError(f"unknown protocol {name!r}; this program knows {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if protocol.tuned and not (thresholds is None and margin is None):
        raise UsageError(
            f"protocol {name} scores the whole image at thresholds that validation data choose; "
            "leave --thresholds and --margin out"
        )
    if protocol.absent and compatible:
        raise UsageError(f"protocol {name} is none of the published release; leave --compatible out")
    if protocol is not chexlocalize.PROTOCOL and at == "original":
        raise UsageError(f"protocol {name} is defined on the padded square; --at original is for protocol chexlocalize")
    at = at or ("original" if protocol.tuned and compatible else "square")
    own = protocol.options
    thresholds, margin = own.thresholds if thresholds is None else thresholds, own.margin if margin is None else margin
    try:
        options = replace(own, thresholds=tuple(thresholds), margin=margin, compatible=compatible, at=at)
    except ValueError as error:
        raise UsageError(str(error)) from None
    return replace(protocol, options=options)
