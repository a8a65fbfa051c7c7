"""The scores of heads on the test records, as a result: summary.json, summary.md and a table for each head."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from afloc_jax.evaluation.files import write_folder
from afloc_jax.evaluation.labelled import LabelledRecords
from afloc_jax.evaluation.results import ByCategory, Overall
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Replicates, Statistic
from afloc_jax.evaluation.statistics.coverage import few_positives
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.evaluation.transfer.metrics import UNTRAINED, key_of
from afloc_jax.evaluation.transfer.result import Baseline, Share, TransferResult
from afloc_jax.evaluation.transfer.settings import TransferSettings
from afloc_jax.evaluation.transfer.splits import TEST, TRAIN, VALIDATION, Splits
from afloc_jax.evaluation.transfer.subsets import Subset
from afloc_jax.files import Path, csv_text
from afloc_jax.inference.model import Model
from afloc_jax.settings import Json

COLUMNS = ("id", "patient", "category", "label", "probability", "threshold", "predicted")
MODEL = "model"
_THRESHOLD = 0.5


@dataclass(frozen=True)
class Fitted:
    """A head that learned from a subset: its probabilities on the test records, and what validation chose."""

    probabilities: Float[np.ndarray, "n C"]
    chosen: Mapping[str, Json]


Systems = Mapping[str, Mapping[str, Fitted]]
"""`MODEL` and `UNTRAINED`: a head for each name of a subset."""
Head = tuple[str, str]
"""A system and the name of a subset."""


@dataclass(frozen=True)
class Scored:
    """What `write` needs of the heads of all systems.

    Attributes:
        encoder: "frozen" or "trained".
        head: a description of the heads.
        chosen: what validation chose, by head.
        statistics: by metric, the function from weights [R, n] to values [R, C, H] of all heads, in the order of
            `chosen`.
        columns, rows: the columns of per_sample.csv, and its rows by head.
    """

    encoder: str
    head: str
    chosen: Mapping[Head, Mapping[str, Json]]
    statistics: Mapping[str, Statistic]
    columns: Sequence[str]
    rows: Mapping[Head, Sequence[Sequence[str | int | float]]]


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
    """The AUC of heads on the test records, written as by `write`.

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
    test = splits.labelled[TEST]
    fitted = {(system, share): one for system, of in systems.items() for share, one in of.items()}
    scores = np.stack([one.probabilities for one in fitted.values()], axis=-1)

    def aucs(weights: Weights) -> np.ndarray:  # [R, C, H]
        classes = []
        for c in range(len(test.classes)):
            known = np.isfinite(test.labels[:, c])
            of = test.labels[known, c] == 1, weights[:, known]
            each = [discrimination.auc(of[0], scores[known, c, h], of[1]) for h in range(len(fitted))]
            classes.append(np.stack(each, axis=-1))
        return np.stack(classes, axis=1)

    rows = {key: _rows(test, one.probabilities) for key, one in fitted.items()}
    chosen = {key: one.chosen for key, one in fitted.items()}
    return write(model, splits, Scored(encoder, head, chosen, {"auc": aucs}, COLUMNS, rows), out, settings)


def write(
    model: Model, splits: Splits, scored: Scored, out: str | os.PathLike[str], settings: TransferSettings
) -> TransferResult:
    """The metrics with intervals; writes summary.json, summary.md and a table for each head to `out`."""
    test, bootstrap = splits.labelled[TEST], settings.resampling
    units, names, heads = bootstrap.units(test.patients, test.ids), list(splits.classes), list(scored.chosen)
    of_head: dict[str, dict[Head, Replicates]] = {}
    for metric, statistic in scored.statistics.items():
        replicates = bootstrap.resample(statistic, len(test), units.clusters)
        of_head[metric] = {head: replicates[h] for h, head in enumerate(heads)}
    metrics: dict[str, dict[str, ByCategory]] = {system: {} for system, _ in heads}
    for metric, found in of_head.items():
        for (system, share), one in found.items():
            values = ByCategory.mean_of(one, names, bootstrap, of_auc=metric == "auc")
            metrics[system][key_of(metric, share)] = values
    chosen: dict[str, dict[str, Mapping[str, Json]]] = {system: {} for system, _ in heads}
    for (system, share), about in scored.chosen.items():
        chosen[system][share] = about
    result = TransferResult(
        settings.account(model, splits.sources[TEST], test.sha256, units),
        few_positives=few_positives({name: units.number(test.labels[:, c] == 1) for c, name in enumerate(names)}),
        target=settings.target,
        n=len(test),
        n_left_out=test.left_out,
        encoder=scored.encoder,
        head=scored.head,
        shares=[_share(subset, splits.labelled[TRAIN]) for subset in splits.subsets],
        validation=len(splits.labelled[VALIDATION]),
        n_per_category={name: int(np.isfinite(test.labels[:, c]).sum()) for c, name in enumerate(names)},
        positives={name: int(np.nansum(test.labels[:, c])) for c, name in enumerate(names)},
        metrics=metrics[MODEL],
        baselines={system: Baseline(found) for system, found in metrics.items() if system != MODEL},
        differences={
            key: difference for metric, found in of_head.items() for key, difference in _differences(metric, found)
        },
        chosen=chosen,
        left_out=splits.left_out,
    )
    for (system, share), rows in scored.rows.items():
        write_folder(Path(out) / f"{system}_{share}", {"per_sample.csv": csv_text(scored.columns, rows)})
    result.write(out, scored.columns, scored.rows[MODEL, splits.subsets[-1].name])
    return result


def _differences(metric: str, of_head: Mapping[Head, Replicates]) -> list[tuple[str, Overall]]:
    """The mean over classes of the model less that of random weights, with percentiles, as `afloc compare`."""
    return [
        (key_of(metric, share), Overall((mine.mean_over(-1) - of_head[UNTRAINED, share].mean_over(-1)).interval()))
        for (system, share), mine in of_head.items()
        if system == MODEL and (UNTRAINED, share) in of_head
    ]


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
