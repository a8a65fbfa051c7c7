"""Transfer by a linear probe: features of the frozen encoder, computed once, and a head per share of the labels.

After GLoRIA (Huang et al., ICCV 2021): 1, 10 and 100 % of the labels, the head on the global image features, AUC on
test records. docs/transfer.md says what differs.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8

from afloc_jax.evaluation.files import write_folder
from afloc_jax.evaluation.labelled import LabelledRecords, encoded_records
from afloc_jax.evaluation.results import ByCategory, Overall
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Replicates
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.task import JsonObject, Models
from afloc_jax.evaluation.transfer.linear import Linear, choose, fit_path
from afloc_jax.evaluation.transfer.metrics import UNTRAINED, key_of
from afloc_jax.evaluation.transfer.result import Baseline, Share, TransferResult
from afloc_jax.evaluation.transfer.settings import PENALTIES, TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, Splits, open_splits
from afloc_jax.evaluation.transfer.subsets import Subset
from afloc_jax.files import Path, csv_text
from afloc_jax.inference.model import Model
from afloc_jax.settings import Json

COLUMNS = ("id", "patient", "category", "label", "probability", "threshold", "predicted")
MODEL = "model"
LINEAR_HEAD = (
    "Logistic regression on the global features before their projection; validation chose its L2 by the mean AUC."
)
_THRESHOLD = 0.5


@dataclass(frozen=True)
class Fitted:
    """A head that learned from a subset: its probabilities on the test records, and what validation chose."""

    probabilities: Float[np.ndarray, "n C"]
    chosen: Mapping[str, Json]


Systems = Mapping[str, Mapping[str, Fitted]]
"""`MODEL` and `UNTRAINED`: a head for each name of a subset."""


def evaluate_dataset(models: Models, out: str | os.PathLike[str], settings: TransferSettings) -> JsonObject:
    """`evaluate_transfer` of the data set that the settings name. Raises UsageError, UserError."""
    splits = open_splits(settings)
    return evaluate_transfer(models, splits, out, settings).to_json()


def evaluate_transfer(
    models: Models, splits: Splits, out: str | os.PathLike[str], settings: TransferSettings
) -> TransferResult:
    """Fits the linear probe of the model, and of the network with random weights; writes `out` as `score` does.

    Raises UserError where features are not finite.
    """
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

    def whole(squares: UInt8[np.ndarray, "B S S"]) -> Float[np.ndarray, "B F"]:
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


def score(
    model: Model,
    splits: Splits,
    systems: Systems,
    out: str | os.PathLike[str],
    settings: TransferSettings,
    *,
    encoder: str,
    head: str,
) -> TransferResult:
    """The AUC of heads on the test records; writes summary.json, summary.md and a table for each head.

    The table of a head, `out`/<system>_<share>/per_sample.csv, has the columns of classification, so that `afloc
    compare` pairs it with that of another model.

    Args:
        model: the model whose features, or weights, the heads of `MODEL` start from.
        splits: the records.
        systems: the heads.
        out: the folder of results.
        settings: the intervals.
        encoder: "frozen" or "trained".
        head: a description of the heads.
    """
    test, bootstrap = splits.labelled[TEST], settings.resampling
    units, names = bootstrap.units(test.patients, test.ids), list(splits.classes)
    heads = [(system, share) for system, of in systems.items() for share in of]
    scores = np.stack([systems[system][share].probabilities for system, share in heads], axis=-1)

    def aucs(weights: Weights) -> np.ndarray:  # [R, C, H]
        classes = []
        for c in range(len(names)):
            known = np.isfinite(test.labels[:, c])
            of = test.labels[known, c] == 1, weights[:, known]
            each = [discrimination.auc(of[0], scores[known, c, h], of[1]) for h in range(len(heads))]
            classes.append(np.stack(each, axis=-1))
        return np.stack(classes, axis=1)

    replicates = bootstrap.resample(aucs, len(test), units.clusters)
    of_head = {head: replicates[h] for h, head in enumerate(heads)}
    metrics = {
        system: {
            key_of("auc", share): ByCategory.mean_of(of_head[system, share], names, bootstrap, of_auc=True)
            for share in of
        }
        for system, of in systems.items()
    }
    result = TransferResult(
        settings.account(model, splits.sources[TEST], test.sha256, units),
        few_positives=few_positives({name: units.number(test.labels[:, c] == 1) for c, name in enumerate(names)}),
        n=len(test),
        n_left_out=test.left_out,
        encoder=encoder,
        head=head,
        shares=[_share(subset, splits.labelled[TRAIN]) for subset in splits.subsets],
        validation=len(splits.labelled[VALIDATION]),
        n_per_category={name: int(np.isfinite(test.labels[:, c]).sum()) for c, name in enumerate(names)},
        positives={name: int(np.nansum(test.labels[:, c])) for c, name in enumerate(names)},
        metrics=metrics[MODEL],
        baselines={system: Baseline(found) for system, found in metrics.items() if system != MODEL},
        differences=_differences(of_head),
        chosen={system: {share: one.chosen for share, one in of.items()} for system, of in systems.items()},
        left_out=splits.left_out,
    )
    for system, share in heads:
        rows = _rows(test, systems[system][share].probabilities)
        write_folder(Path(out) / f"{system}_{share}", {"per_sample.csv": csv_text(COLUMNS, rows)})
    result.write(out, COLUMNS, _rows(test, systems[MODEL][splits.subsets[-1].name].probabilities))
    return result


def _differences(of_head: Mapping[tuple[str, str], Replicates]) -> dict[str, Overall]:
    """The mean AUC of the model less that of the network with random weights, with percentiles, as `afloc compare`."""
    return {
        key_of("auc", share): Overall((mine.mean_over(-1) - of_head[UNTRAINED, share].mean_over(-1)).interval())
        for (system, share), mine in of_head.items()
        if system == MODEL and (UNTRAINED, share) in of_head
    }


def _share(subset: Subset, records: LabelledRecords) -> Share:
    labels = records.labels[subset.rows]
    positives = {name: int(np.nansum(labels[:, c])) for c, name in enumerate(records.classes)}
    return Share(subset.name, subset.title, subset.patients, len(subset.rows), positives)


def _rows(records: LabelledRecords, probabilities: Float[np.ndarray, "n C"]) -> list[tuple[str | int | float, ...]]:
    rows: list[tuple[str | int | float, ...]] = []
    for i, name in enumerate(records.ids):
        for c, category in enumerate(records.classes):
            label, probability = records.labels[i, c], float(probabilities[i, c])
            known = "" if np.isnan(label) else int(label)
            decided = (probability, _THRESHOLD, int(probability >= _THRESHOLD))
            rows.append((name, records.patients[i], category, known, *decided))
    return rows
