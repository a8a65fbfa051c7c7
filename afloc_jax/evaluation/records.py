"""Samples from prepared records: the truths that a protocol scores, and the location prior of a training split."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from jaxtyping import UInt8

from afloc_jax.errors import UserError
from afloc_jax.evaluation.baselines import leave_one_out_prior, location_prior, prior_heatmaps
from afloc_jax.evaluation.protocols import LocalizationProtocol
from afloc_jax.evaluation.truth import Truth, add_box, boxes_of, negative
from afloc_jax.inference.class_prompts import find_class
from afloc_jax.inference.model import Model
from afloc_jax.provenance import hash_of, provenance
from data_pipelines.records import ABSENT

CLASS_PROMPT = "Findings suggesting {finding}."  # how the release asks for a class


class Source(Protocol):
    """Random access to records with `id`, `image` [S, S] uint8 and `findings` (label, prompt, mask).

    Optional: `patient`, `labels` ({class: 1, 0 or -1}), and `boxes` of a finding, which need the record's `geometry`.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


def evaluation_provenance(model: Model, source: Source, data_sha256: str) -> dict[str, Any]:
    """Where the numbers of a model on records come from: `provenance` with weights, data and architecture."""
    return provenance(
        weights_sha256=model.weights_sha256,
        data_sha256=data_sha256,
        records=getattr(source, "content_hash", ""),
        config_sha256=hash_of(model.config.architecture.to_dict()),
    )


def patient_of(record: Any) -> str:
    """The pseudonym of a record's patient; empty where unknown."""
    return getattr(record, "patient", "")


def place_of(record: Any, finding: Any, compatible: bool = False, boxes: bool = False) -> UInt8[np.ndarray, "S S"]:
    """Where a finding is: 0 outside; inside, how many of its boxes cover the pixel (1 for masks).

    Annotated boxes are drawn anew, each for itself: the stored mask is their union, which no longer says where they
    overlap or touch. They are stored as float32, so a corner within 1e-7 of a pixel's edge may fall on its other side.

    Args:
        record, finding: of a source.
        compatible: boxes as the release draws them (thin ones vanish). Masks were brought to the square when the
            record was made, half covered is inside; the release's rules for masks need the original ones.
        boxes: boxes instead of masks: of a finding without annotated ones, those around the connected parts.
    """
    stored = (np.asarray(finding.mask) > 0).astype(np.uint8)
    annotated = getattr(finding, "boxes", ())
    if not len(annotated):
        return boxes_of(stored) if boxes else stored
    place = np.zeros_like(stored)
    for box in annotated:
        add_box(place, box, record.geometry, compatible)
    return place


def read_truths(source: Source, compatible: bool = False, boxes: bool = False) -> tuple[list[Truth], np.ndarray, str]:
    """One sample per finding of every record, its place as `place_of` gives it.

    Returns:
        The truths, the row in `source` of each, and the SHA-256 over ids, images, prompts, masks and boxes.

    Raises:
        UserError: no record has a finding.
    """
    truths: list[Truth] = []
    rows: list[int] = []
    digest = hashlib.sha256()
    for row in range(len(source)):
        record = source[row]
        for k, finding in enumerate(record.findings):
            place = place_of(record, finding, compatible, boxes)
            about = {"image": record.id, "patient": patient_of(record)}
            truths.append(Truth(f"{record.id}#{k}", finding.prompt, finding.label, place, **about))
            rows.append(row)
            digest.update(f"{record.id}\t{finding.label}\t{finding.prompt}\t".encode())
            digest.update(np.packbits(np.asarray(finding.mask) > 0).tobytes())
            digest.update(np.array(getattr(finding, "boxes", ()), np.float32).tobytes())
        digest.update(np.ascontiguousarray(record.image).tobytes() if record.findings else b"")
    if not truths:
        raise UserError("this data set has no annotated finding, so there is nothing to score; choose another split")
    return truths, np.array(rows), digest.hexdigest()


def truths_for(
    protocol: LocalizationProtocol,
    source: Source,
    classes: Sequence[str] = (),
    class_prompt: str = CLASS_PROMPT,
    compatible: bool = False,
) -> tuple[list[Truth], np.ndarray, str]:
    """The samples that a protocol scores, the row in `source` of each, and the hash that `read_truths` gives.

    A protocol with negatives asks every image for every class, with `class_prompt`; `classes` are asked for beside
    those that the source shows. An image whose label says that a class is present or uncertain, and that has no place
    for it, is no negative: it is not asked.
    """
    truths, rows, digest = read_truths(source, compatible, protocol.boxes)
    if not protocol.negatives:
        return truths, rows, digest
    shown: dict[tuple[int, str], np.ndarray] = {}
    for truth, row in zip(truths, rows, strict=True):
        key = (int(row), truth.category)
        shown[key] = np.maximum(shown[key], truth.mask) if key in shown else truth.mask
    size = truths[0].mask.shape[0]
    samples, at = [], []
    for row in range(len(source)):
        record = source[row]
        labels = getattr(record, "labels", {})
        for name in sorted({truth.category for truth in truths} | set(classes)):
            listed = find_class(name, labels)
            if (row, name) not in shown and listed is not None and labels[listed] != ABSENT:
                continue
            prompt = class_prompt.replace("{finding}", name)
            sample = replace(negative(record.id, name, size), label_text=prompt, patient=patient_of(record))
            if (row, name) in shown:
                sample = replace(sample, mask=shown[row, name], present=True)
            samples.append(sample)
            at.append(row)
    return samples, np.array(at), digest


def prior_maps(prior_source: Source | None, size: int) -> tuple[Callable[[Sequence[Truth]], Iterable[np.ndarray]], str]:
    """What makes the maps of the location prior for some truths, and in words what it was made from.

    Without training masks, each sample meets the mean mask of the other images among them.
    """
    places: dict[str, list[tuple[int, int]]] = {}
    prior_source = [] if prior_source is None else prior_source
    for row in range(len(prior_source)):
        for k, finding in enumerate(prior_source[row].findings):
            places.setdefault(finding.label, []).append((row, k))
    if not places:
        return leave_one_out_prior, "mean mask of the category in the other evaluation images"
    shape = (size, size)

    def masks(category: str) -> Iterator[np.ndarray]:  # decoded one at a time: training sets are large
        for row, k in places[category]:
            mask = np.asarray(prior_source[row].findings[k].mask)
            if mask.shape != shape:
                raise UserError(f"training masks are {mask.shape}, evaluation masks {shape}; prepare both at one size")
            yield mask

    priors = location_prior({category: masks(category) for category in places})
    count = sum(len(group) for group in places.values())
    return partial(prior_heatmaps, priors), f"mean mask of the category in {count:,} training masks"
