"""Samples from prepared records: the truths that a protocol scores, and the location prior of a training split."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from afloc_jax.errors import UserError
from afloc_jax.evaluation.localization.baselines import leave_one_out_prior, location_prior, prior_heatmaps
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol
from afloc_jax.evaluation.localization.settings import CLASS_PROMPT
from afloc_jax.evaluation.records import Source, patient_of, place_of
from afloc_jax.evaluation.truth.sample import Truth, negative
from afloc_jax.inference.class_prompts import find_class
from data_pipelines.records import ABSENT


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
