"""The segmentation probe: a 1 x 1 convolution on the frozen deep map learns masks from shares of the labelled images.

It is the linear segmentation of DINOv2 (Oquab et al., TMLR 2024): logits of the cells of a frozen map by one linear
layer, upsampled to the image. docs/transfer.md says what differs.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.special
from jaxtyping import Bool, Float, Int, UInt8

from afloc_jax.evaluation.labelled import encoded_records
from afloc_jax.evaluation.localization.metrics import overlaps
from afloc_jax.evaluation.results import PER_SAMPLE_COLUMNS
from afloc_jax.evaluation.statistics.bootstrap import Statistic
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.transfer.linear import Linear, fit_path
from afloc_jax.evaluation.transfer.result import TransferResult
from afloc_jax.evaluation.transfer.scores import Scored, write
from afloc_jax.evaluation.transfer.settings import PENALTIES, TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, Splits
from afloc_jax.heatmaps import cell_means, upsample
from afloc_jax.inference.class_prompts import find_class
from afloc_jax.inference.model import Model
from afloc_jax.settings import Json
from data_pipelines.records import Record

SEGMENTATION_HEAD = (
    "A 1 x 1 convolution on the deep map before its projection, upsampled to the image; validation chose its L2 by the "
    "loss of cells, and for each class the threshold by the mean Dice."
)
# Probabilities of which validation chooses one for each class. The cells of small findings rarely reach a half.
THRESHOLDS = (0.01, 0.02, 0.03, 0.05, 0.07, *(step / 20 for step in range(2, 20)))
_LOGITS = scipy.special.logit(THRESHOLDS)
_METRICS = ("dice", "iou")


@dataclass(frozen=True)
class Segmented:
    """A head that learned masks from a subset.

    Attributes:
        scores: by metric, the score of each test record and class; NaN where the record has no mask of the class.
        thresholds: for each class the probability above which pixels are drawn.
        chosen: what validation chose.
    """

    scores: Mapping[str, Float[np.ndarray, "n C"]]
    thresholds: Sequence[float]
    chosen: Mapping[str, Json]


@dataclass(frozen=True)
class Part:
    """The records of a split for a model: [n] rows of its source, with labels [n, C] (see `splits.read_splits`)."""

    model: Model
    splits: Splits
    name: str
    rows: Int[np.ndarray, " n"]
    labels: Float[np.ndarray, "n C"]

    @classmethod
    def of(cls, model: Model, splits: Splits, name: str, chosen: slice | Int[np.ndarray, " k"] = slice(None)) -> "Part":
        records = splits.labelled[name]
        return cls(model, splits, name, records.rows[chosen], records.labels[chosen])

    def masks(self, i: int) -> Bool[np.ndarray, "C S S"]:
        """The mask of each class in a record: the union of its findings of that class."""
        return masks_of(self.splits.sources[self.name][int(self.rows[i])], self.splits.classes)

    def learned(self, most: int, seed: int) -> tuple[Float[np.ndarray, "k F"], Float[np.ndarray, "k C"]]:
        """The features of cells, and the share of each that a class covers; NaN where that is unknown.

        Of every record the same number of cells is drawn, as many as make at most `most` of all records (at least one).
        Which ones depends on the seed and the row of the record alone.
        """
        masks = self.masks(0)
        grid = _deep(self.model, np.zeros((1, *masks.shape[1:]), np.uint8)).shape[1:3]
        count = min(grid[0] * grid[1], max(1, most // len(self.rows)))

        def drawn(row: int) -> Int[np.ndarray, " c"]:
            return np.sort(np.random.default_rng((seed, row)).permutation(grid[0] * grid[1])[:count])

        def features(squares: UInt8[np.ndarray, "B S S"], rows: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B c F"]:
            deep = _deep(self.model, squares)
            flat = deep.reshape(len(deep), -1, deep.shape[-1])
            return np.stack([cells[drawn(row)] for cells, row in zip(flat, rows.tolist(), strict=True)])

        shares = []
        for i, row in enumerate(self.rows.tolist()):
            means = cell_means(self.masks(i), grid, _input_size(self.model)).reshape(len(self.splits.classes), -1)
            known = np.where(np.isfinite(self.labels[i]), 1.0, np.nan)
            shares.append((means[:, drawn(row)] * known[:, None]).T)
        found = self._encoded(features)
        return found.reshape(-1, found.shape[-1]), np.concatenate(shares)

    def logits(self, heads: Sequence[Linear]) -> Float[np.ndarray, "n H C h w"]:
        """The logits of cells by each of H heads."""

        def of(squares: UInt8[np.ndarray, "B S S"], _: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B H C h w"]:
            deep = _deep(self.model, squares)
            return np.stack([np.moveaxis(head.logits(deep), -1, 1) for head in heads], axis=1).astype(np.float32)

        return self._encoded(of)

    def _encoded(self, encode: Callable[..., np.ndarray]) -> np.ndarray:
        source = self.splits.sources[self.name]
        return encoded_records(encode, self.model, source, self.rows, "pad", f"{self.name} images")


def masks_of(record: Record, classes: Sequence[str]) -> Bool[np.ndarray, "C S S"]:
    """The union of the masks of a record's findings of each class, or of synonyms of it."""
    masks = np.zeros((len(classes), *record.image.shape), bool)
    for finding in record.findings:
        name = find_class(finding.label, classes)
        if name is not None:
            masks[classes.index(name)] |= finding.mask
    return masks


def segmentation_probes(model: Model, splits: Splits, settings: TransferSettings) -> dict[str, Segmented]:
    """The probe of each subset, by its name, with its scores on the test records.

    A class learns the logistic regression of `fit_path` on cells, whose label is the share of the cell that a mask
    covers, weighted as `cell_means`.
    """
    validation, test = (Part.of(model, splits, name) for name in (VALIDATION, TEST))
    fits: list[list[Linear]] = []
    for subset in splits.subsets:
        features, shares = Part.of(model, splits, TRAIN, subset.rows).learned(settings.cells, settings.subset_seed)
        fits.append(fit_path(features, shares, PENALTIES))
    logits = validation.logits([fit for path in fits for fit in path])
    losses = cell_losses(logits, validation).reshape(len(fits), -1)
    best = [(number, int(np.argmin(of))) for number, of in enumerate(losses)]
    offered = logits[:, [number * len(PENALTIES) + one for number, one in best]]
    reached = _dice_at(validation, offered)
    thresholds = np.take(THRESHOLDS, np.nan_to_num(reached).argmax(axis=-1))  # [H, C]
    scores = _scores(test, test.logits([fits[number][one] for number, one in best]), thresholds)
    found = {}
    for h, (number, one) in enumerate(best):
        chosen: dict[str, Json] = {
            "penalty": PENALTIES[one],
            "validation loss of cells": float(losses[number, one]),
            "validation Dice": float(reached[h].max(axis=-1).mean()),
            "thresholds": ", ".join(f"{value:g}" for value in thresholds[h]),
        }
        of_head = {metric: values[..., h] for metric, values in scores.items()}
        found[splits.subsets[number].name] = Segmented(of_head, thresholds[h].tolist(), chosen)
    return found


def cell_losses(logits: Float[np.ndarray, "n H C h w"], part: Part) -> Float[np.ndarray, " H"]:
    """The cross entropy of heads, the mean over the cells of records in which a class is known, then over classes."""
    total, known = np.zeros(logits.shape[1:3]), np.isfinite(part.labels)
    for i, of in enumerate(np.asarray(logits, np.float64)):
        target = cell_means(part.masks(i), of.shape[-2:], _input_size(part.model))
        total += known[i] * (np.logaddexp(0, of) - target * of).mean(axis=(-2, -1))
    return np.asarray((total / known.sum(axis=0)).mean(axis=-1))


def score_masks(
    model: Model,
    splits: Splits,
    systems: Mapping[str, Mapping[str, Segmented]],
    out: str | os.PathLike[str],
    settings: TransferSettings,
) -> TransferResult:
    """Dice and IoU of heads over the test records with a mask of the class, written as by `scores.write`.

    The table of a head has the columns of localisation, so that `afloc compare` pairs it with that of another model.
    """
    test = splits.labelled[TEST]
    heads = {(system, share): one for system, of in systems.items() for share, one in of.items()}

    def mean(metric: str) -> Statistic:
        values = np.stack([one.scores[metric] for one in heads.values()], axis=-1)  # [n, C, H]
        drawn = np.isfinite(values[..., 0])

        def means(weights: Weights) -> np.ndarray:  # [R, C, H]
            classes = []
            for c in range(values.shape[1]):
                mine = weights[:, drawn[:, c]]
                count = np.asarray(mine.sum(axis=1))[:, None]
                with np.errstate(invalid="ignore"):  # a resample without the class
                    classes.append(np.asarray(mine @ values[drawn[:, c], c]) / count)
            return np.stack(classes, axis=1)

        return means

    rows = {
        key: [
            (name, test.patients[i], category, metric, float(head.thresholds[c]), float(values[i, c]), "")
            for metric, values in head.scores.items()
            for i, name in enumerate(test.ids)
            for c, category in enumerate(test.classes)
            if np.isfinite(values[i, c])
        ]
        for key, head in heads.items()
    }
    chosen = {key: head.chosen for key, head in heads.items()}
    statistics = {metric: mean(metric) for metric in _METRICS}
    scored = Scored("frozen", SEGMENTATION_HEAD, chosen, statistics, PER_SAMPLE_COLUMNS, rows)
    return write(model, splits, scored, out, settings)


def _shown(part: Part, logits: Float[np.ndarray, "n H C h w"]) -> Iterator[tuple[int, int, np.ndarray, np.ndarray]]:
    """For each record i and class c that it has a mask of: i, c, the logits of pixels [H, S, S], and the mask."""
    for i in np.flatnonzero((part.labels == 1).any(axis=1)).tolist():
        masks = part.masks(i)
        pixels = np.asarray(upsample(logits[i], masks.shape[1:], _input_size(part.model)))
        for c in np.flatnonzero((part.labels[i] == 1) & masks.any(axis=(1, 2))).tolist():
            yield i, c, pixels[:, c], masks[c]


def _dice_at(part: Part, logits: Float[np.ndarray, "n H C h w"]) -> Float[np.ndarray, "H C K"]:
    """The mean Dice of heads at each of `THRESHOLDS`."""
    values = np.full((*logits.shape[:3], len(THRESHOLDS)), np.nan)
    for i, c, pixels, mask in _shown(part, logits):
        values[i, :, c] = [overlaps(of, mask, _LOGITS).dice for of in pixels]
    return np.asarray(mean_of_finite(values, axis=0))


def _scores(
    part: Part, logits: Float[np.ndarray, "n H C h w"], thresholds: Float[np.ndarray, "H C"]
) -> dict[str, Float[np.ndarray, "n C H"]]:
    """Dice and IoU of heads at their thresholds."""
    at = scipy.special.logit(thresholds)
    values = {metric: np.full((len(logits), logits.shape[2], logits.shape[1]), np.nan) for metric in _METRICS}
    for i, c, pixels, mask in _shown(part, logits):
        for h, of in enumerate(pixels):
            overlap = overlaps(of, mask, [at[h, c]])
            values["dice"][i, c, h], values["iou"][i, c, h] = overlap.dice[0], overlap.iou[0]
    return values


def _deep(model: Model, squares: UInt8[np.ndarray, "B S S"]) -> Float[np.ndarray, "B h w F"]:
    return model.backbone_features(squares, ("deep",))["deep"]


def _input_size(model: Model) -> int | None:
    """What `upsample` is to know of the model's cells."""
    return model.config.architecture.image.input_size if model.heatmap_settings.cells == "receptive_field" else None
