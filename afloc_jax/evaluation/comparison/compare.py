"""Comparison of two result folders on the same samples: paired differences with intervals, tests and corrections.

Only per_sample.csv is compared, so any two evaluations of one kind can be compared: localisation, retrieval and
robustness (a score per sample and metric), or classification (a decision per sample and class).
"""

import math
import operator
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.comparison import paired
from afloc_jax.evaluation.comparison.result import Comparison, Row, Unmatched
from afloc_jax.evaluation.comparison.sample_tables import Key, SampleTable, read_samples
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates
from afloc_jax.evaluation.statistics.interval import mean_of_finite
from afloc_jax.evaluation.statistics.jackknife import Weights
from afloc_jax.files import Path

Drawn: TypeAlias = Mapping[tuple[str, str], str]
"""The unit of each sample: of its id and category, or of its id and "" in classification."""

OVERALL = "all categories"
LISTED = 20  # most keys without a partner in comparison.json


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    bootstrap: Bootstrap | None = None,
) -> Comparison:
    """Compares the per-sample scores of two result folders; writes comparison.csv, .json and .md to `out` if given.

    Samples are paired by id, category, metric and threshold. A metric with thresholds is first averaged over them for
    each sample. Every metric has a row per category and one for the mean over categories (`OVERALL`).

    The interval is a paired bootstrap; a difference of AUCs is nearly symmetric and has percentiles by default. `p` is
    that of a sign-flip permutation test of the mean difference; for the AUC of one class of DeLong's test (of a paired
    bootstrap if patients are resampled), for the mean AUC of a paired bootstrap. Holm and Benjamini-Hochberg adjust the
    rows of categories together, and the overall rows together.

    Raises UserError if a folder has no usable scores, the kinds of scores or the labels differ, or no sample is in
    both.
    """
    bootstrap = bootstrap or Bootstrap()
    first, second = read_samples(Path(a)), read_samples(Path(b))
    if bool(first.scores) != bool(second.scores):
        kinds = ["values" if side.scores else "probabilities" for side in (first, second)]
        raise UserError(f"{a} holds {kinds[0]} and {b} {kinds[1]}; compare two evaluations of one kind")
    shared = set(first.keys) & set(second.keys)
    common = [key for key in first.keys if key in shared]
    lonely = {name: [key for key in side.keys if key not in shared] for name, side in (("a", first), ("b", second))}
    if not common:
        example = f"{first.keys[0]} against {second.keys[0]}"
        raise UserError(
            f"no sample of {first.folder} is in {second.folder}, so there is nothing to compare; for example {example}"
        )
    # All classes of an image are one sample of classification.
    samples = list(dict.fromkeys((key.id, key.category if first.scores else "") for key in common))
    patients, images = ([names[of] for of, _ in samples] for names in (first.patients, first.images))
    units = bootstrap.units(patients, images)
    drawn = None if units.clusters is None else dict(zip(samples, units.clusters.tolist(), strict=True))
    compare_kind = _compare_scores if first.scores else _compare_decisions
    result = Comparison(
        str(a),
        str(b),
        len(common),
        {name: Unmatched(len(keys), [str(key) for key in keys[:LISTED]]) for name, keys in lonely.items()},
        _notes(first, second),
        bootstrap.to_dict(units),
        paired.PERMUTATIONS,
        _corrected(compare_kind(first, second, common, bootstrap, drawn)),
        {"a": first.provenance, "b": second.provenance},
    )
    if out is not None:
        result.write(Path(out))
    return result


# Scores per sample


def _compare_scores(
    first: SampleTable, second: SampleTable, common: Sequence[Key], bootstrap: Bootstrap, drawn: Drawn | None
) -> list[Row]:
    rows = []
    for metric in dict.fromkeys(key.metric for key in common):
        pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for key in common:
            if key.metric == metric:
                pairs.setdefault((key.id, key.category), []).append((first.scores[key], second.scores[key]))
        means = {sample: _mean_of_both(both) for sample, both in pairs.items()}
        scored = {sample: values for sample, values in means.items() if np.isfinite(values).all()}
        if not scored:
            continue
        a, b = np.stack(list(scored.values()), axis=1)
        names = list(dict.fromkeys(category for _, category in scored))
        index = np.array([names.index(category) for _, category in scored])
        clusters = None if drawn is None else np.array([drawn[sample] for sample in scored])
        rows += _mean_rows(metric, a, b, index, names, clusters, bootstrap)
    if not rows:
        raise UserError("the samples in common have no score in both folders, so there is nothing to compare")
    return rows


def _mean_of_both(pairs: Sequence[tuple[float, float]]) -> Float[np.ndarray, "2"]:
    """The means of A and of B over the thresholds at which both have a score."""
    both = np.array(pairs)
    return mean_of_finite(np.where(np.isfinite(both).all(axis=1, keepdims=True), both, np.nan), axis=0)


def _mean_rows(
    metric: str,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    category: Int[np.ndarray, " n"],
    names: Sequence[str],
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> list[Row]:
    """The rows of a metric that is a mean over samples: the mean over categories, and each category."""
    difference = a - b
    means = bootstrap.means(difference[:, None], category, len(names), clusters)[0]
    sizes = np.bincount(category, minlength=len(names))
    parts = {name: (np.flatnonzero(category == c), means[c]) for c, name in enumerate(names)}
    if len(names) > 1:
        parts = {OVERALL: (np.arange(len(a)), means.mean_over(-1)), **parts}
    rows = []
    for name, (members, replicates) in parts.items():
        weight = 1 / (sizes[category[members]] * (len(names) if name == OVERALL else 1))
        contributions, plain = difference[members] * weight, difference[members]
        if clusters is not None:  # the samples of a patient change sign together
            _, index = np.unique(clusters[members], return_inverse=True)
            contributions = np.bincount(index, contributions)
            plain = np.bincount(index, plain) / np.bincount(index)
        interval = bootstrap.limits_of(replicates)
        rows.append(
            Row(
                metric,
                name,
                len(members),
                float((a[members] * weight).sum()),
                float((b[members] * weight).sum()),
                interval.mean,
                interval.lower,
                interval.upper,
                "permutation",
                paired.sign_flip_test(contributions, seed=bootstrap.seed),
                p_wilcoxon=paired.wilcoxon_test(plain),
                units=len(contributions),
            )
        )
    return rows


# Decisions of classification


def _compare_decisions(
    first: SampleTable, second: SampleTable, common: Sequence[Key], bootstrap: Bootstrap, drawn: Drawn | None
) -> list[Row]:
    common = [k for k in common if not math.isnan(first.decisions[k].label + second.decisions[k].label)]
    for key in common:
        if first.decisions[key].label != second.decisions[key].label:
            raise UserError(f"the label of {key} differs between {first.folder} and {second.folder}: not the same data")
    ids = list(dict.fromkeys(key.id for key in common))
    names = list(dict.fromkeys(key.category for key in common))
    if not ids:
        raise UserError("no sample in common has a known label, so there is nothing to compare")
    labels = np.full((len(ids), len(names)), np.nan)
    scores, right = np.zeros((2, 2, len(ids), len(names)))
    position = {name: i for i, name in enumerate(ids)}
    for key in common:
        i, c = position[key.id], names.index(key.category)
        labels[i, c] = first.decisions[key].label
        for side, samples in enumerate((first, second)):
            decision = samples.decisions[key]
            scores[side, i, c], right[side, i, c] = decision.probability, decision.predicted == labels[i, c]
    clusters = None if drawn is None else np.array([drawn[name, ""] for name in ids])
    rows = _auc_rows(labels, scores, names, clusters, bootstrap)
    known_i, known_c = np.nonzero(np.isfinite(labels))
    unit_of = (np.array(ids) if clusters is None else clusters)[known_i]  # an image's classes are drawn together
    for metric, values in (("accuracy", right), ("brier", (scores - labels) ** 2)):
        a, b = values[:, known_i, known_c]
        rows += _mean_rows(metric, a, b, known_c, names, unit_of, bootstrap)
    return rows


def _auc_rows(
    labels: Float[np.ndarray, "n C"],
    scores: Float[np.ndarray, "2 n C"],
    names: Sequence[str],
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> list[Row]:
    known = np.isfinite(labels)

    def statistic(weights: Weights) -> np.ndarray:
        sides = []
        for c in range(len(names)):
            rows = known[:, c]
            truth, w = labels[rows, c] == 1, weights[:, rows]
            sides.append(np.stack([discrimination.auc(truth, scores[s][rows, c], w) for s in range(2)], axis=-1))
        return np.stack(sides, axis=1)  # [R, C, 2]

    aucs = bootstrap.resample(statistic, len(labels), clusters)
    rows = []
    if len(names) > 1:
        rows.append(_auc_row(OVERALL, len(labels), aucs.mean_over(-2), bootstrap))
    for c, name in enumerate(names):
        of_class = aucs.map(operator.itemgetter((..., c, slice(None))))
        row = _auc_row(name, int(known[:, c].sum()), of_class, bootstrap)
        truth, both = labels[known[:, c], c] == 1, scores[:, known[:, c], c]
        positive = (np.arange(len(labels)) if clusters is None else clusters)[labels[:, c] == 1]
        row = replace(row, units=len(np.unique(positive)))
        rows.append(row if clusters is not None else _with_delong(row, truth, both))
    return rows


def _auc_row(name: str, n: int, aucs: Replicates, bootstrap: Bootstrap) -> Row:
    difference = aucs[0] - aucs[1]
    interval = bootstrap.limits_of(difference)
    a, b = (float(value) for value in aucs.point)
    p = paired.bootstrap_test(difference.resampled)
    return Row("auc", name, n, a, b, interval.mean, interval.lower, interval.upper, "bootstrap", p)


def _with_delong(row: Row, labels: Bool[np.ndarray, " n"], scores: Float[np.ndarray, "2 n"]) -> Row:
    """The row with DeLong's test; unchanged if there are too few positives or negatives for it."""
    if min(labels.sum(), (~labels).sum()) < 2:
        return row
    both, signs = discrimination.delong(labels, scores), np.array([1, -1])
    variance = float(signs @ both.covariance @ signs)
    difference = float(both.aucs[0] - both.aucs[1])
    if variance <= 1e-18:
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p = float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance)))
    return replace(row, test="DeLong", p=p)


# Corrections and notes


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with adjusted p: the rows of categories are one family, the overall rows another."""
    result = list(rows)
    for family in (True, False):
        members = [i for i, row in enumerate(rows) if (row.category == OVERALL) == family]
        p = np.array([rows[i].p for i in members])
        for i, by_holm, by_bh in zip(members, paired.holm(p), paired.benjamini_hochberg(p), strict=True):
            result[i] = replace(rows[i], p_holm=float(by_holm), p_bh=float(by_bh))
    return result


def _notes(a: SampleTable, b: SampleTable) -> list[str]:
    """Notes on differences between the two evaluations that affect the comparison."""
    notes = []
    hashes = [side.provenance.get("data_sha256") for side in (a, b)]
    if all(hashes) and hashes[0] != hashes[1]:
        notes.append("the data differ between the two folders (other images, masks or labels, or another selection).")
    for key, value in a.settings.items():
        if key in b.settings and value != b.settings[key]:
            notes.append(f"{key} is {value!r} in A and {b.settings[key]!r} in B.")
    differing = sum(b.mask_thresholds.get(name, value) != value for name, value in a.mask_thresholds.items())
    if differing:
        notes.append(f"each is scored at the mask thresholds of its own validation data; they differ for {differing}.")
    return notes
