"""Transfer by a linear probe: features of the frozen encoder, computed once, and a head per share of the labels.

After GLoRIA (Huang et al., ICCV 2021): 1, 10 and 100 % of the labels, the head on the global image features, AUC on
test records. docs/transfer.md says what differs. With `target = "masks"` the head is that of segmentation.py.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from afloc_jax.evaluation.labelled import encoded_records
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.transfer.linear import Linear, choose, fit_path
from afloc_jax.evaluation.transfer.metrics import UNTRAINED
from afloc_jax.evaluation.transfer.result import TransferResult
from afloc_jax.evaluation.transfer.scores import MODEL, Fitted, score
from afloc_jax.evaluation.transfer.segmentation import score_masks, segmentation_probes
from afloc_jax.evaluation.transfer.settings import PENALTIES, TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, Splits, open_splits
from afloc_jax.evaluation.transfer.subsets import Subset
from afloc_jax.inference.model import Model

LINEAR_HEAD = (
    "Logistic regression on the global features before their projection; validation chose its L2 by the mean AUC."
)


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: TransferSettings) -> JsonObject:
    """`evaluate_transfer` of the data set that the settings name. Raises UsageError, UserError."""
    splits = open_splits(settings)
    return evaluate_transfer(models, splits, out, settings).to_json()


def evaluate_transfer(
    models: Models, splits: Splits, out: str | os.PathLike[str], settings: TransferSettings
) -> TransferResult:
    """Fits the probe of the model, and of the network with random weights; writes `out` as `scores.write` does.

    Raises UserError where features are not finite.
    """
    if settings.target == "masks":
        heads = {
            MODEL: segmentation_probes(models.trained, splits, settings),
            UNTRAINED: segmentation_probes(models.untrained, splits, settings),
        }
        return score_masks(models.trained, splits, heads, out, settings)
    systems = {
        MODEL: linear_probes(models.trained, splits, settings),
        UNTRAINED: linear_probes(models.untrained, splits, settings),
    }
    return score(models.trained, splits, systems, out, settings, encoder="frozen", head=LINEAR_HEAD)


def linear_probes(model: Model, splits: Splits, settings: TransferSettings) -> dict[str, Fitted]:
    """The linear probe of each subset, by its name."""
    return {name: probe.fitted for name, probe in fit_probes(model, splits, settings).items()}


@dataclass(frozen=True)
class Probe:
    """A linear probe, and its probabilities on the test records."""

    linear: Linear
    fitted: Fitted


def fit_probes(model: Model, splits: Splits, settings: TransferSettings) -> dict[str, Probe]:
    """The linear probe of each subset, by its name. The features are computed once."""

    def whole(squares: UInt8[np.ndarray, "B S S"], _: Int[np.ndarray, " B"]) -> Float[np.ndarray, "B F"]:
        return model.backbone_features(squares)["whole"]

    features = {
        part: encoded_records(whole, model, splits.sources[part], records.rows, settings.framed, f"{part} images")
        for part, records in splits.labelled.items()
    }
    labels = {part: records.labels for part, records in splits.labelled.items()}
    return {subset.name: _probe(features, labels, subset) for subset in splits.subsets}


def _probe(features: Mapping[str, np.ndarray], labels: Mapping[str, np.ndarray], subset: Subset) -> Probe:
    fits = fit_path(features[TRAIN][subset.rows], labels[TRAIN][subset.rows], PENALTIES)
    best, reached = choose(fits, features[VALIDATION], labels[VALIDATION])
    chosen = {"penalty": PENALTIES[best], "validation AUC": reached}
    return Probe(fits[best], Fitted(fits[best].probabilities(features[TEST]), chosen))
