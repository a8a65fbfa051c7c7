"""Two result folders on the same samples: paired differences with intervals, tests and corrections.

What is compared comes from per_sample.csv alone, so any two evaluations of one kind can meet: localisation and
retrieval (a row per sample and metric), or classification (a row per sample and class, with label and probability).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats
from jaxtyping import Float, Int

from afloc_jax.errors import UserError
from afloc_jax.evaluation.comparison import paired
from afloc_jax.evaluation.comparison.sample_tables import Key, Samples, read_samples, spoken
from afloc_jax.evaluation.files import csv_text, json_text, shown, write_folder
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap, Replicates, mean_of_finite
from afloc_jax.evaluation.statistics.bootstrap import bootstrap as bootstrap_means

OVERALL = "all categories"
LISTED = 20  # keys without a partner that are named in comparison.json


@dataclass(frozen=True)
class Row:
    """One line of the comparison: A minus B."""

    metric: str
    category: str
    n: int
    a: float
    b: float
    difference: float
    lower: float
    upper: float
    test: str
    p: float
    p_holm: float = float("nan")
    p_bh: float = float("nan")
    p_wilcoxon: float = float("nan")


def compare(
    a: str | Path, b: str | Path, out: str | Path | None = None, bootstrap: Bootstrap | None = None
) -> dict[str, Any]:
    """Compare the per-sample scores of two result folders; write comparison.csv, .json and .md into `out` if given.

    Samples meet by id, category, metric and threshold. A metric with thresholds is averaged over them first, for each
    sample. Every metric has a row per category and one for the mean over categories (`OVERALL`).

    The interval is a paired bootstrap. `p` is a sign-flip permutation test of the mean difference; for AUC of one class
    DeLong's test (a paired bootstrap when patients are drawn), for the mean AUC a paired bootstrap. Holm and
    Benjamini-Hochberg adjust the rows of the categories together, and the overall rows together.

    Returns:
        The content of comparison.json.

    Raises:
        UserError: a folder without usable per-sample scores, different kinds of scores, labels that differ,
        or no sample in common.
    """
    bootstrap = bootstrap or Bootstrap()
    first, second = read_samples(a), read_samples(b)
    if first.kind != second.kind:
        raise UserError(f"{a} holds {first.kind} and {b} {second.kind}; compare two evaluations of one kind")
    common = [key for key in first.values if key in second.values]
    unmatched = [[key for key in x.values if key not in y.values] for x, y in ((first, second), (second, first))]
    if not common:
        example = f"{spoken(next(iter(first.values)))} against {spoken(next(iter(second.values)))}"
        raise UserError(f"no sample of {a} is in {b}, so there is nothing to compare; for example {example}")
    rows = (_compare_values if first.kind == "values" else _compare_probabilities)(first, second, common, bootstrap)
    rows = _corrected(rows)
    result = {
        "a": str(a),
        "b": str(b),
        "matched": len(common),
        "unmatched": {
            name: {"count": len(keys), "examples": [spoken(key) for key in keys[:LISTED]]}
            for name, keys in zip("ab", unmatched, strict=True)
        },
        "notes": _notes(first.summary, second.summary),
        "bootstrap": bootstrap.to_dict(),
        "permutations": paired.PERMUTATIONS,
        "rows": [{key: _none(value) for key, value in asdict(row).items()} for row in rows],
        "provenance": {name: samples.summary.get("provenance", {}) for name, samples in (("a", first), ("b", second))},
    }
    if out is not None:
        columns = list(asdict(rows[0]))
        table = csv_text(columns, [list(asdict(row).values()) for row in rows])
        write_folder(
            out, {"comparison.csv": table, "comparison.md": to_markdown(result), "comparison.json": json_text(result)}
        )
    return result


def to_markdown(result: Mapping[str, Any]) -> str:
    """The comparison as a table that reads well in plain text."""
    bootstrap = result["bootstrap"]
    lines = [
        "# Comparison",
        "",
        f"A: `{result['a']}`",
        f"B: `{result['b']}`",
        "",
        f"{result['matched']} scores of both meet. Without a partner: {result['unmatched']['a']['count']} of A, "
        f"{result['unmatched']['b']['count']} of B.",
    ]
    for name in "ab":
        if result["unmatched"][name]["examples"]:
            lines.append(
                f"Only in {name.upper()}, for example: {'; '.join(result['unmatched'][name]['examples'][:3])}."
            )
    lines += [f"Note: {note}" for note in result["notes"]]
    lines += [
        "",
        f"Difference A - B [95 % paired {bootstrap['interval']} interval, {bootstrap['resamples']} resamples by "
        f"{bootstrap['unit']}]. p: the test named; Holm and BH adjust the rows of categories together and the overall "
        "rows together.",
        "",
        "| metric | category | n | A | B | A - B | test | p | Holm | BH | Wilcoxon |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        difference = shown({"mean": row["difference"], "lower": row["lower"], "upper": row["upper"]})
        cells = [row["metric"], row["category"].replace("|", "/"), str(row["n"])]
        cells += [_short(row["a"]), _short(row["b"]), difference, row["test"]]
        cells += [_short(row[name]) for name in ("p", "p_holm", "p_bh", "p_wilcoxon")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


# Scores per sample


def _compare_values(first: Samples, second: Samples, common: Sequence[Key], bootstrap: Bootstrap) -> list[Row]:
    rows = []
    for metric in dict.fromkeys(key[2] for key in common):
        pairs: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for key in common:
            if key[2] == metric:
                pairs.setdefault(key[:2], []).append((first.values[key], second.values[key]))
        samples = list(pairs)
        values = np.array([_mean_of_both(pairs[sample]) for sample in samples])
        scored = np.isfinite(values).all(axis=1)
        samples, values = [s for s, keep in zip(samples, scored, strict=True) if keep], values[scored]
        if not len(samples):
            continue
        names = list(dict.fromkeys(sample[1] for sample in samples))
        category = np.array([names.index(sample[1]) for sample in samples])
        clusters = bootstrap.clusters([first.clusters[sample[0]] for sample in samples])
        rows += _mean_rows(metric, values[:, 0], values[:, 1], category, names, clusters, bootstrap)
    if not rows:
        raise UserError("the samples in common have no score in both folders, so there is nothing to compare")
    return rows


def _mean_rows(
    metric: str,
    a: Float[np.ndarray, " n"],
    b: Float[np.ndarray, " n"],
    category: Int[np.ndarray, " n"],
    names: Sequence[str],
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> list[Row]:
    """Rows of a metric that is a mean over samples: the mean over categories, and each category."""
    difference = a - b
    found = bootstrap_means(
        difference[:, None],
        category,
        len(names),
        bootstrap.resamples,
        bootstrap.seed,
        clusters=clusters,
        leave_out=bootstrap.leave_out,
    )[0]
    sizes = np.bincount(category, minlength=len(names))
    parts = {name: (np.flatnonzero(category == c), found[c]) for c, name in enumerate(names)}
    if len(names) > 1:
        overall = found.map(lambda x: mean_of_finite(x, axis=-1))
        parts = {OVERALL: (np.arange(len(a)), overall), **parts}
    rows = []
    for name, (members, replicates) in parts.items():
        weight = 1 / (sizes[category[members]] * (len(names) if name == OVERALL else 1))
        limits = bootstrap.limits_of(replicates)
        contributions, plain = difference[members] * weight, difference[members]
        if clusters is not None:  # a patient's samples change sign together
            _, index = np.unique(clusters[members], return_inverse=True)
            contributions = np.bincount(index, contributions)
            plain = np.bincount(index, plain) / np.bincount(index)
        rows.append(
            Row(
                metric,
                name,
                len(members),
                float((a[members] * weight).sum()),
                float((b[members] * weight).sum()),
                limits.mean,
                limits.lower,
                limits.upper,
                "permutation",
                paired.sign_flip_test(contributions, seed=bootstrap.seed),
                p_wilcoxon=paired.wilcoxon_test(plain),
            )
        )
    return rows


# Probabilities of classes


def _compare_probabilities(first: Samples, second: Samples, common: Sequence[Key], bootstrap: Bootstrap) -> list[Row]:
    for key in common:
        if first.values[key][0] != second.values[key][0] and not np.isnan(first.values[key][0] + second.values[key][0]):
            raise UserError(
                f"the label of {spoken(key)} differs between {first.folder} and {second.folder}: not the same data"
            )
    common = [key for key in common if np.isfinite(first.values[key][0]) and np.isfinite(second.values[key][0])]
    ids = list(dict.fromkeys(key[0] for key in common))
    names = list(dict.fromkeys(key[1] for key in common))
    if not ids:
        raise UserError("no sample in common has a known label, so there is nothing to compare")
    labels = np.full((len(ids), len(names)), np.nan)
    scores = np.zeros((2, len(ids), len(names)))
    right = np.zeros((2, len(ids), len(names)))
    position = {name: i for i, name in enumerate(ids)}
    for key in common:
        i, c = position[key[0]], names.index(key[1])
        labels[i, c] = first.values[key][0]
        for side, samples in enumerate((first, second)):
            _, scores[side, i, c], predicted = samples.values[key]
            right[side, i, c] = predicted == labels[i, c]
    patients = [first.clusters[name] for name in ids]
    clusters = bootstrap.clusters(patients)
    rows = _auc_rows(labels, scores, names, clusters, bootstrap)
    known_i, known_c = np.nonzero(np.isfinite(labels))
    of_known = (np.array(ids) if clusters is None else clusters)[known_i]  # an image's classes are drawn together
    for metric, values in (("accuracy", right), ("brier", (scores - labels) ** 2)):
        a, b = values[:, known_i, known_c]
        rows += _mean_rows(metric, a, b, known_c, names, of_known, bootstrap)
    return rows


def _auc_rows(
    labels: Float[np.ndarray, "n C"],
    scores: Float[np.ndarray, "2 n C"],
    names: Sequence[str],
    clusters: np.ndarray | None,
    bootstrap: Bootstrap,
) -> list[Row]:
    def statistic(weights: np.ndarray) -> np.ndarray:
        sides = []
        for c in range(len(names)):
            known = np.isfinite(labels[:, c])
            truth, w = labels[known, c] == 1, weights[:, known]
            sides.append(np.stack([discrimination.auc(truth, scores[s][known, c], w) for s in range(2)], axis=-1))
        return np.stack(sides, axis=1)  # [R, C, 2]

    both = bootstrap.resample(statistic, len(labels), clusters)
    rows = []
    if len(names) > 1:
        mean = both.map(lambda values: mean_of_finite(values, axis=-2))
        rows.append(_auc_row(OVERALL, len(labels), mean, bootstrap))
    for c, name in enumerate(names):
        known = np.isfinite(labels[:, c])
        of_class = Replicates(both.point[c], both.resampled[:, c], tuple(part[:, c] for part in both.left_out))
        row = _auc_row(name, int(known.sum()), of_class, bootstrap)
        rows.append(row if clusters is not None else _with_delong(row, labels[known, c] == 1, scores[:, known, c]))
    return rows


def _auc_row(name: str, n: int, both: Replicates, bootstrap: Bootstrap) -> Row:
    difference = both[0] - both[1]
    limits = bootstrap.limits_of(difference)
    a, b = (float(value) for value in both.point)
    p = paired.bootstrap_test(difference.resampled)
    return Row("auc", name, n, a, b, limits.mean, limits.lower, limits.upper, "bootstrap", p)


def _with_delong(row: Row, labels: np.ndarray, scores: Float[np.ndarray, "2 n"]) -> Row:
    """The row with DeLong's test; as it was where there are too few positives or negatives for one."""
    if min(labels.sum(), (~labels).sum()) < 2:
        return row
    found = discrimination.delong(labels, scores)
    variance = float(np.array([1, -1]) @ found.covariance @ np.array([1, -1]))
    difference = float(found.aucs[0] - found.aucs[1])
    if variance <= 1e-18:
        p = 1.0 if abs(difference) < 1e-12 else 0.0
    else:
        p = float(2 * scipy.stats.norm.sf(abs(difference) / np.sqrt(variance)))
    return Row(**{**asdict(row), "test": "DeLong", "p": p})


# Small parts


def _corrected(rows: Sequence[Row]) -> list[Row]:
    """With adjusted p: the rows of categories are one family, the overall rows another."""
    result = list(rows)
    for family in (True, False):
        chosen = [i for i, row in enumerate(rows) if (row.category == OVERALL) == family]
        p = np.array([rows[i].p for i in chosen])
        for i, by_holm, by_bh in zip(chosen, paired.holm(p), paired.benjamini_hochberg(p), strict=True):
            result[i] = Row(**{**asdict(rows[i]), "p_holm": float(by_holm), "p_bh": float(by_bh)})
    return result


def _notes(first: Mapping[str, Any], second: Mapping[str, Any]) -> list[str]:
    """What the two summaries say that a reader should know before trusting the difference."""
    notes = []
    hashes = [summary.get("provenance", {}).get("data_sha256") for summary in (first, second)]
    if all(hashes) and hashes[0] != hashes[1]:
        notes.append("the data differ between the two folders (other images, masks or labels, or another selection).")
    for key in ("protocol", "compatible", "framing", "prompt_set", "aggregation", "margin", "thresholds_chosen_on"):
        if key in first and key in second and first[key] != second[key]:
            notes.append(f"{key} is {first[key]!r} in A and {second[key]!r} in B.")
    points = [summary.get("operating_points", {}) for summary in (first, second)]
    chosen = [{name: point.get("mask_threshold") for name, point in of.items()} for of in points]
    own = [name for name in chosen[0] if name in chosen[1] and chosen[0][name] != chosen[1][name]]
    if own:
        notes.append(f"each is scored at the mask thresholds of its own validation data; they differ for {len(own)}.")
    return notes


def _mean_of_both(pairs: Sequence[tuple[float, float]]) -> np.ndarray:
    """[2]: means over the thresholds at which both have a score."""
    both = np.array(pairs)
    return mean_of_finite(np.where(np.isfinite(both).all(axis=1, keepdims=True), both, np.nan), axis=0)


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def _none(value: Any) -> Any:
    return None if isinstance(value, float) and not np.isfinite(value) else value
