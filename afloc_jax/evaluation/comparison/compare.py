"""Comparison of two result folders on the same samples: paired differences with intervals, tests and corrections.

Only per_sample.csv is compared, so any two evaluations of one kind can be compared: localisation, retrieval, robustness
and counterfactuals (a score per sample and metric), or classification (a decision per sample and class).
"""

import operator
import os
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import scipy.stats
from jaxtyping import Bool, Float

from afloc_jax.errors import UserError
from afloc_jax.evaluation.comparison import paired
from afloc_jax.evaluation.comparison.failure import Failure
from afloc_jax.evaluation.comparison.means import means_of
from afloc_jax.evaluation.comparison.page import comparison_page
from afloc_jax.evaluation.comparison.result import OVERALL, Comparison, Difference, Row, Unmatched
from afloc_jax.evaluation.comparison.sample_tables import SampleTable, images_in, read_samples
from afloc_jax.evaluation.comparison.values import Ranked, Scored, Values, values_of
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates
from afloc_jax.files import Path

LISTED = 20  # most keys without a partner in comparison.json


def compare(
    a: str | os.PathLike[str],
    b: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    bootstrap: Bootstrap | None = None,
    failures: Sequence[Failure] = (),
) -> Comparison:
    """Compares the per-sample scores of two result folders; writes comparison.csv, .json and .md to `out` if given.

    Samples are paired by id, category, metric and threshold. A metric with thresholds is first averaged over them for
    each sample. Every metric has a row per category and one for the mean over categories (`OVERALL`); a failure is a
    metric that is 1 where a sample fails.

    The interval is a paired bootstrap; a difference of AUCs is nearly symmetric and has percentiles by default. `p` is
    that of a sign-flip permutation test of the mean difference; for the AUC of one class of DeLong's test (of a paired
    bootstrap if patients are resampled), for the mean AUC of a paired bootstrap. Holm and Benjamini-Hochberg adjust the
    rows of categories together, and the overall rows together. Metrics of 0 and 1 also have McNemar's exact test, whose
    p is adjusted by Holm in the same two families.

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
            f"no sample of {first.name} is in {second.name}, so there is nothing to compare; for example {example}"
        )
    values = values_of((first, second), common, bootstrap, failures)
    result = Comparison(
        str(a),
        str(b),
        len(common),
        {name: Unmatched(len(keys), [str(key) for key in keys[:LISTED]]) for name, keys in lonely.items()},
        _notes(first, second),
        bootstrap.to_dict(values.units),
        paired.PERMUTATIONS,
        corrected(difference_rows(values, 0, 1)),
        {"a": first.provenance, "b": second.provenance},
        images_in((first, second)),
    )
    if out is not None:
        names = (first.name, second.name)
        means = means_of(values, names)
        differences = [Difference(*names, result.rows)]
        page = comparison_page(names, means, differences, result.notes, result.bootstrap, result.images)
        result.write(Path(out), page)
    return result


def difference_rows(values: Values, a: int, b: int) -> list[Row]:
    """The rows of system `a` minus system `b`."""
    rows = [] if values.ranked is None else _auc_rows(values.ranked, values.aucs, a, b, values.bootstrap)
    for scored in values.scored:
        rows += _mean_rows(scored, a, b, values.bootstrap)
    return rows


# Means over samples


def _mean_rows(scored: Scored, side_a: int, side_b: int, bootstrap: Bootstrap) -> list[Row]:
    """The rows of a metric that is a mean over samples: the mean over categories, and each category."""
    a, b, names, category = scored.values[side_a], scored.values[side_b], scored.names, scored.category
    difference = a - b
    means = bootstrap.means(difference[:, None], category, len(names), scored.clusters)[0]
    sizes = np.bincount(category, minlength=len(names))
    parts = {name: (np.flatnonzero(category == c), means[c]) for c, name in enumerate(names)}
    if len(names) > 1:
        parts = {OVERALL: (np.arange(len(a)), means.mean_over(-1)), **parts}
    of_zero_and_one = bool(np.isin(scored.values[[side_a, side_b]], (0, 1)).all())
    rows = []
    for name, (members, replicates) in parts.items():
        weight = 1 / (sizes[category[members]] * (len(names) if name == OVERALL else 1))
        index = np.arange(len(members))
        if scored.clusters is not None:  # the samples of a patient change sign together
            _, index = np.unique(scored.clusters[members], return_inverse=True)
        net = np.bincount(index, difference[members])
        interval = bootstrap.limits_of(replicates)
        contributions = np.bincount(index, difference[members] * weight)
        row = Row(
            scored.metric,
            name,
            len(members),
            float((a[members] * weight).sum()),
            float((b[members] * weight).sum()),
            interval.mean,
            interval.lower,
            interval.upper,
            "permutation",
            paired.sign_flip_test(contributions, seed=bootstrap.seed),
            p_wilcoxon=paired.wilcoxon_test(net / np.bincount(index)),
            units=len(net),
        )
        if of_zero_and_one:
            only_a, only_b = ((difference[members] == sign).sum() for sign in (1, -1))
            p = paired.mcnemar_test(np.rint(net).astype(np.int64))
            row = replace(row, only_a=int(only_a), only_b=int(only_b), p_mcnemar=p)
        rows.append(row)
    return rows


# AUC


def _auc_rows(ranked: Ranked, of_all: Replicates, side_a: int, side_b: int, bootstrap: Bootstrap) -> list[Row]:
    sides = [side_a, side_b]
    labels, scores, aucs = ranked.labels, ranked.scores[sides], of_all.map(lambda values: values[..., sides])
    known = np.isfinite(labels)
    rows = []
    if len(ranked.names) > 1:
        rows.append(_auc_row(OVERALL, len(labels), aucs.mean_over(-2), bootstrap))
    for c, name in enumerate(ranked.names):
        of_class = aucs.map(operator.itemgetter((..., c, slice(None))))
        row = _auc_row(name, int(known[:, c].sum()), of_class, bootstrap)
        truth, both = labels[known[:, c], c] == 1, scores[:, known[:, c], c]
        row = replace(row, units=ranked.positive_units(c))
        rows.append(row if ranked.clusters is not None else _with_delong(row, truth, both))
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


def corrected(rows: Sequence[Row]) -> list[Row]:
    """The rows with adjusted p: the rows of categories are one family, the overall rows another.

    McNemar's tests are adjusted among themselves, in the same two families.
    """
    result = list(rows)
    for family in (True, False):
        members = [i for i, row in enumerate(rows) if (row.category == OVERALL) == family]
        p = np.array([rows[i].p for i in members])
        for i, by_holm, by_bh in zip(members, paired.holm(p), paired.benjamini_hochberg(p), strict=True):
            result[i] = replace(rows[i], p_holm=float(by_holm), p_bh=float(by_bh))
        tested = [i for i in members if rows[i].only_a is not None]
        for i, adjusted in zip(tested, paired.holm(np.array([rows[i].p_mcnemar for i in tested])), strict=True):
            result[i] = replace(result[i], p_mcnemar_holm=float(adjusted))
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
