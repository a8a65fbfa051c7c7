"""The places of findings in prepared records, and the provenance of numbers on them."""

import numpy as np
from jaxtyping import UInt8

from afloc_jax.evaluation.truth.sample import Drawing, boxes_of
from afloc_jax.inference.model import Model
from afloc_jax.provenance import hash_of, provenance
from afloc_jax.settings import Json
from data_pipelines.reading import Records
from data_pipelines.records import Finding, Record


def evaluation_provenance(model: Model, source: Records, data_sha256: str) -> dict[str, Json]:
    """The provenance of the numbers of a model on records: weights, data and architecture."""
    return provenance(
        weights_sha256=model.weights_sha256,
        data_sha256=data_sha256,
        records=getattr(source, "content_hash", ""),
        config_sha256=hash_of(model.config.architecture.plain()),
    )


def place_of(record: Record, finding: Finding, drawing: Drawing) -> UInt8[np.ndarray, "S S"]:
    """The place of a finding: 0 outside; inside, the number of its boxes that cover the pixel (1 for masks).

    Annotated boxes are drawn anew, each for itself: the stored mask is their union, which no longer says where they
    overlap or touch. They are stored as float32, so a corner within 1e-7 of a pixel's edge may fall on its other side.

    Masks were brought to the square when the record was made, half covered is inside; the release's rules for masks
    need the original ones.
    """
    stored = (np.asarray(finding.mask) > 0).astype(np.uint8)
    if not len(finding.boxes):
        return boxes_of(stored) if drawing.boxes else stored
    place = np.zeros_like(stored)
    for box in finding.boxes:
        drawing.add_box(place, box, record.geometry)
    return place
