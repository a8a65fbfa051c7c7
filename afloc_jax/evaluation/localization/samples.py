"""Samples of prepared records: the truths that a protocol scores, and those of the baselines."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import read_labelled
from afloc_jax.evaluation.localization.baselines import LeftOutPriors, Priors, TrainingPriors
from afloc_jax.evaluation.localization.protocol import LocalizationProtocol
from afloc_jax.evaluation.truth.sample import Drawing, Truth, negative
from afloc_jax.inference.class_prompts import class_key, find_class
from data_pipelines.constants import CLASS_PROMPT
from data_pipelines.reading import Records
from data_pipelines.records import ABSENT
from data_pipelines.regions import United


class About(NamedTuple):
    """What is known of the image of a row. Height and width are 0 where the square is compared."""

    id: str
    patient: str
    labels: Mapping[str, int]
    height: int = 0
    width: int = 0


@dataclass(frozen=True)
class Part:
    """The samples of a split.

    Attributes:
        source: its records.
        truths: one sample per finding of every record, with its place; in a protocol with negatives one per image and
            class.
        rows: [n] the row in the source of each.
        about: of every row its id, patient, labels, and the height and width of its image if they are compared.
        sha256: over ids, images, prompts, masks and boxes, and masks in original pixels where those are compared.
    """

    source: Records
    truths: Sequence[Truth]
    rows: Int[np.ndarray, " n"]
    about: list[About] = field(repr=False)
    sha256: str

    @property
    def classes(self) -> set[str]:
        """The classes of the findings."""
        return {truth.category for truth in self.truths}


def read_truths(source: Records, drawing: Drawing) -> Part:
    """Reads the truths of all records. Raises UserError if none has a finding."""
    truths: list[Truth] = []
    rows: list[int] = []
    about: list[About] = []
    digest = hashlib.sha256()
    for row in range(len(source)):
        record = source[row]
        size = (record.height, record.width) if drawing.original else (0, 0)
        about.append(About(record.id, record.patient, record.labels, *size))
        for k, finding in enumerate(record.findings):
            place = drawing.of_finding(record, finding)
            sample_id, region = f"{record.id}#{k}", drawing.region_of_finding(record, finding)
            sample = Truth(sample_id, finding.prompt, finding.label, place, record.id, *size, patient=record.patient)
            boxes = drawing.squared(finding.boxes, record.geometry) if len(finding.boxes) else ()
            truths.append(replace(sample, region=region, boxes=boxes))
            rows.append(row)
            digest.update(f"{record.id}\t{finding.label}\t{finding.prompt}\t".encode())
            digest.update(np.packbits(np.asarray(finding.mask) > 0).tobytes())
            digest.update(np.array(finding.boxes, np.float32).tobytes())
            digest.update(finding.runs.encode() if drawing.original else b"")
        digest.update(np.ascontiguousarray(record.image).tobytes() if record.findings else b"")
    if not truths:
        raise UserError("this data set has no annotated finding, so there is nothing to score; choose another split")
    return Part(source, truths, np.array(rows), about, digest.hexdigest())


def parts_of(
    protocol: LocalizationProtocol, sources: Sequence[Records], class_prompt: str = CLASS_PROMPT
) -> list[Part]:
    """The samples that a protocol scores, for each of several splits.

    With negatives every image is a sample of every class of all splits, with the prompt `class_prompt`. An image
    without a mask or box of a class is a negative, unless its label says that the class is present or uncertain; then
    it is not a sample of that class. (In compatible scores it is: labels are not read.)

    A protocol with prompts of absent findings has those of `with_absent`.
    """
    read = [read_truths(source, protocol.drawing) for source in sources]
    if protocol.absent:
        return [with_absent(part) for part in read]
    if not protocol.negatives:
        return read
    classes = sorted(set().union(*(part.classes for part in read)))
    return [_every_class(part, classes, class_prompt, protocol.compatible) for part in read]


def with_absent(part: Part, seed: int = 0) -> Part:
    """The samples, and of each class as many prompts of images that lack it, as far as there are so many.

    An image lacks a class if a label says so, or if all findings of the data set are annotated (`read_labelled`). It is
    asked by a prompt of the data set for that class. Images and prompts are drawn; the same seed gives the same ones.
    Samples stay ordered by image.
    """
    rng, known = np.random.default_rng(seed), read_labelled(part.source)
    size = part.truths[0].mask.shape[0]
    samples, rows = [*part.truths], part.rows.tolist()
    for name in sorted(part.classes):
        of_class = [truth for truth in part.truths if truth.category == name]
        prompts = sorted({truth.label_text for truth in of_class if truth.label_text.strip()})
        listed = find_class(name, known.classes)
        if listed is None or not prompts:
            continue
        lacking = known.rows[known.labels[:, known.classes.index(listed)] == 0]
        for row in rng.permutation(lacking)[: len(of_class)].tolist():
            about = part.about[row]
            sample = negative(about.id, name, size, about.height, about.width)
            prompt = prompts[int(rng.integers(len(prompts)))]
            samples.append(replace(sample, label_text=prompt, patient=about.patient))
            rows.append(row)
    if all(truth.present for truth in samples):
        raise UserError("no image is known to lack a finding, as protocol generalised needs; choose another data set")
    order = np.argsort(rows, kind="stable")
    return replace(part, truths=[samples[i] for i in order], rows=np.array(rows)[order])


def _every_class(annotated: Part, classes: Sequence[str], class_prompt: str, compatible: bool) -> Part:
    """A sample for every image and class; the findings of one class are united."""
    places: dict[tuple[int, str], Truth] = {}
    for truth, row in zip(annotated.truths, annotated.rows.tolist(), strict=True):
        key = (row, truth.category)
        places[key] = _united(places[key], truth) if key in places else truth
    size = annotated.truths[0].mask.shape[0]
    samples, rows = [], []
    for row, (image, patient, labels, height, width) in enumerate(annotated.about):
        for name in classes:
            place, listed = places.get((row, name)), find_class(name, labels)
            if place is None and listed is not None and labels[listed] != ABSENT and not compatible:
                continue
            prompt = class_prompt.replace("{finding}", name)
            sample = replace(negative(image, name, size, height, width), label_text=prompt, patient=patient)
            if place is not None:
                sample = replace(sample, mask=place.mask, region=place.region, present=True)
            samples.append(sample)
            rows.append(row)
    return replace(annotated, truths=samples, rows=np.array(rows))


def _united(one: Truth, other: Truth) -> Truth:
    """The first sample with the findings of both."""
    regions = tuple(region for region in (one.region, other.region) if region is not None)
    boxes = one.boxes + other.boxes
    return replace(one, mask=np.maximum(one.mask, other.mask), region=United(regions) if regions else None, boxes=boxes)


def priors_of(prior_source: Records | None, truths: Sequence[Truth]) -> Priors:
    """The priors of samples: from the masks of training records, else from the other samples."""
    if prior_source is not None:
        trained = TrainingPriors(prior_source, truths)
        if trained.usable:
            return trained
    return LeftOutPriors(truths)


def partners(rows: Int[np.ndarray, " n"], about: Sequence[About], seed: int = 0) -> dict[int, int]:
    """For the row of each image with a sample the row of another one, of another patient where there is one.

    Empty if there is a single image.
    """
    images = np.unique(rows).tolist()
    if len(images) < 2:
        return {}
    rng, found = np.random.default_rng(seed), dict[int, int]()
    for position, row in enumerate(images):
        first, patient = int(rng.integers(1, len(images))), about[row].patient
        others = (images[(position + first + step) % len(images)] for step in range(len(images)))
        elsewhere = (o for o in others if o != row and (not patient or about[o].patient != patient))
        found[row] = next(elsewhere, images[(position + first) % len(images)])
    return found


def named_by_class(part: Part) -> Part:
    """The samples with the name of their class as prompt, and with all findings of that class in the image."""
    places: dict[tuple[int, str], Truth] = {}
    keys = list(zip(part.rows.tolist(), (truth.category for truth in part.truths), strict=True))
    for key, truth in zip(keys, part.truths, strict=True):
        places[key] = _united(places[key], truth) if key in places else truth
    truths = [
        replace(places[key], id=truth.id, label_text=class_key(truth.category), present=truth.present)
        for key, truth in zip(keys, part.truths, strict=True)
    ]
    return replace(part, truths=truths)
