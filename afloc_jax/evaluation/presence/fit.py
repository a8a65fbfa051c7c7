"""The fit of presence on validation data: calibration.json of a model folder.

Both fits are maximum likelihood with Platt's smoothed targets, (P + 1) / (P + 2) for P positives and 1 / (N + 2) for N
negatives (Platt 1999), by SciPy's L-BFGS-B. A weak normal prior keeps temperatures near 1 and biases near 0 where
classes are separated completely.
"""

from collections.abc import Sequence
from dataclasses import replace

import jax
import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.optimize import minimize
from tqdm import tqdm

from afloc_jax.errors import UserError
from afloc_jax.evaluation.labelled import LabelledRecords
from afloc_jax.evaluation.presence.labels import Asked, LabelSource, questions, read_labels, words_of
from afloc_jax.evaluation.presence.settings import CalibrationSettings
from afloc_jax.evaluation.settings import LabelledSettings
from afloc_jax.evaluation.sharing import gathered, is_own, of_first
from afloc_jax.files import AnyPath, bucket_path
from afloc_jax.inference.class_prompts import class_key
from afloc_jax.inference.model import Model, load
from afloc_jax.settings import Json
from afloc_jax.weights.calibration import (
    Calibration,
    ClassFit,
    Pooled,
    own_fits,
    read_calibration,
    sigmoid,
    write_calibration,
)
from afloc_jax.weights.folder import update_card
from data_pipelines.prepared import open_source
from data_pipelines.reading import Records
from data_pipelines.settings import DataSettings

LEAST = 20  # positive and negative records of a class with a fit of its own
_PRIOR = 1.0  # the precision of the prior of a class's temperature and bias
_POOLED_PRIOR = 1e-3
_STEEPEST = 100.0  # of 1 / temperature


def calibrate(folder: AnyPath, settings: LabelledSettings) -> Calibration:
    """Fits presence on a split of a data set, and writes calibration.json and the model card.

    With several processes all must call this. Raises UsageError, UserError.
    """
    return _calibrate(folder, settings.open(settings.split), settings)


def calibrate_run(folder: AnyPath, data: DataSettings) -> str:
    """Fits presence on the validation data of a run, unless this was done. All processes call this.

    Returns:
        Why it could not be fitted, such as reports that deny nothing; empty if it was.
    """
    if of_first(read_calibration(bucket_path(folder)) is not None):
        return ""
    split = data.validation_split
    named = {"name": data.dataset, "directory": data.directory, "split": split}
    source = open_source(
        data.dataset, data.directory, split, raw=data.raw, builder=data.builder, cache=data.cache, reading=data.reading
    )
    try:
        _calibrate(folder, source, CalibrationSettings.read(named))
    except UserError as error:
        return str(error)
    return ""


def _calibrate(folder: AnyPath, source: Records, settings: LabelledSettings) -> Calibration:
    fitted = fit_presence(load(folder), source, settings)
    if jax.process_index() == 0:
        write_calibration(folder, fitted)
        update_card(bucket_path(folder), {"presence": _described(fitted)})
    return of_first(fitted)  # the others go on when the files are written


def fit_presence(model: Model, source: Records, settings: LabelledSettings) -> Calibration:
    """The calibration of a model on records. Raises UserError if no class is known both to be present and absent."""
    records, labels = read_labels(source, settings)
    asked = questions(source, records)
    fitted = fit(evidence_of(model, source, asked.rows, asked.prompts), asked, records, labels)
    return replace(
        fitted, weights_sha256=model.weights_sha256, dataset=settings.name, split=settings.split, records=len(records)
    )


def fit(
    evidence: Float[np.ndarray, "P E"], asked: Asked, records: LabelledRecords, labels: LabelSource = "records"
) -> Calibration:
    """The calibration from the evidence of each question."""
    pooled = _fit_pooled(evidence, asked.present)
    logits = Calibration(pooled=pooled).logits(evidence)
    classes = []
    for c, name in enumerate(records.classes):
        own = asked.category == c
        positives, negatives = (int((records.labels[:, c] == value).sum()) for value in (1, 0))
        found = ClassFit(class_key(name), words_of(name), positives=positives, negatives=negatives)
        if min(positives, negatives) >= LEAST:
            slope, bias = _logistic(logits[own, None], asked.present[own], np.array([1.0, 0.0]), _PRIOR)
            found = replace(found, temperature=1 / slope, bias=bias)
        classes.append(found)
    return Calibration(labels=labels, pooled=pooled, classes=tuple(classes))


def evidence_of(
    model: Model, source: Records, image_rows: Int[np.ndarray, " P"], prompts: Sequence[str]
) -> Float[np.ndarray, "P E"]:
    """The evidence of P prompts, each in the image of a row of the source. Processes share the batches."""
    rows, image_of = np.unique(image_rows, return_inverse=True)
    parts: list[tuple[np.ndarray, np.ndarray] | None] = []
    starts = range(0, len(rows), model.batch_size)
    for number, start in enumerate(tqdm(starts, desc="presence", unit="batch", disable=None)):
        if not is_own(number):
            parts.append(None)
            continue
        squares = np.stack([source[int(row)].image for row in rows[start : start + model.batch_size]])
        chosen = np.flatnonzero((image_of >= start) & (image_of < start + len(squares)))
        here = [prompts[k] for k in chosen.tolist()]
        parts.append((chosen, model.evidence(squares, image_of[chosen] - start, here)))
    found = gathered(parts)
    evidence = np.empty((len(prompts), found[0][1].shape[1]))
    for chosen, values in found:
        evidence[chosen] = values
    return evidence


def _fit_pooled(evidence: Float[np.ndarray, "P E"], present: Bool[np.ndarray, " P"]) -> Pooled:
    if present.all() or not present.any():
        raise UserError("presence is fitted on images with and without a finding; these have one kind alone")
    mean, deviation = evidence.mean(axis=0), evidence.std(axis=0)
    deviation = np.where(deviation > 1e-9, deviation, 1.0)
    start = np.zeros(evidence.shape[1] + 1)
    *weights, bias = _logistic((evidence - mean) / deviation, present, start, _POOLED_PRIOR, bounded=False)
    return Pooled(
        mean=_numbers(mean),
        deviation=_numbers(deviation),
        lowest=_numbers(evidence.min(axis=0)),
        highest=_numbers(evidence.max(axis=0)),
        weights=tuple(weights),
        bias=bias,
    )


def _numbers(values: Float[np.ndarray, " E"]) -> tuple[float, ...]:
    return tuple(float(value) for value in values)


def _logistic(
    inputs: Float[np.ndarray, "P K"],
    present: Bool[np.ndarray, " P"],
    prior: Float[np.ndarray, " K1"],
    precision: float,
    bounded: bool = True,
) -> list[float]:
    """The slopes and the bias of a logistic regression. `bounded`: slopes stay above 0."""
    positives = int(present.sum())
    targets = np.where(present, (positives + 1) / (positives + 2), 1 / (len(present) - positives + 2))
    with_one = np.column_stack([inputs, np.ones(len(inputs))])

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z, away = with_one @ parameters, parameters - prior
        value = (np.logaddexp(0, z) - targets * z).sum() + precision / 2 * (away**2).sum()
        return float(value), with_one.T @ (sigmoid(z) - targets) + precision * away

    limits = [(1 / _STEEPEST, _STEEPEST) if bounded else (None, None)] * inputs.shape[1] + [(None, None)]
    found = minimize(loss, prior, jac=True, method="L-BFGS-B", bounds=limits)
    return [float(value) for value in found.x]


def _described(fitted: Calibration) -> dict[str, Json]:
    """The facts for the model card."""
    own = [fit.name for fit in own_fits(fitted)]
    return {
        "data set": f"{fitted.dataset}, split {fitted.split}, {fitted.records} records",
        "labels": fitted.labels,
        "own fit": [*own],
        "pooled fit": [fit.name for fit in fitted.classes if fit.name not in own],
    }
