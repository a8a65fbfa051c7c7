"""The linear probe against scikit-learn, and the subsets it learns from."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from afloc_jax.errors import UserError
from afloc_jax.evaluation.transfer.linear import choose, fit_path, mean_auc
from afloc_jax.evaluation.transfer.subsets import check_classes, draw


def problem(n=80, features=6, classes=3, seed=0):
    """Features of different scales, one of them constant, and labels of which some are unknown."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(n, features)) * np.array([1.0, 10.0, 0.1, 3.0, 1.0, 0.0]) + 5
    truth = rng.normal(size=(features, classes)) / np.array([1.0, 10.0, 0.1, 3.0, 1.0, 1.0])[:, None]
    labels = ((x - 5) @ truth + rng.normal(size=(n, classes)) > 0).astype(float)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    return x.astype(np.float32), labels


def test_each_penalty_gives_the_fit_of_scikit_learn_on_known_labels():
    x, labels = problem()
    penalties = (1.0, 0.03, 0.001)
    new, _ = problem(seed=1)
    for penalty, fit in zip(penalties, fit_path(x, labels, penalties), strict=True):
        for c in range(labels.shape[1]):
            known = np.isfinite(labels[:, c])
            theirs = LogisticRegression(C=1 / (penalty * known.sum()), tol=1e-10, max_iter=10_000)
            theirs.fit(fit.scaled(x)[known], labels[known, c])
            np.testing.assert_allclose(fit.weights[:, c], theirs.coef_[0], atol=2e-4)
            expected = theirs.predict_proba(fit.scaled(new))[:, 1]
            np.testing.assert_allclose(fit.probabilities(new)[:, c], expected, atol=1e-4)


def test_validation_chooses_the_highest_mean_auc_and_of_equal_ones_the_first():
    x, labels = problem()
    new, truth = problem(seed=2)
    fits = fit_path(x, labels, (1.0, 0.1, 0.01))
    aucs = []
    for fit in fits:
        each = [(truth[:, c], fit.probabilities(new)[:, c]) for c in range(3)]
        aucs.append(np.mean([roc_auc_score(y[np.isfinite(y)], p[np.isfinite(y)]) for y, p in each]))
    best, reached = choose(fits, new, truth)
    assert best == int(np.argmax(aucs))
    assert reached == pytest.approx(max(aucs)) == mean_auc(truth, fits[best].probabilities(new))
    assert choose([fits[1], fits[1]], new, truth)[0] == 0


def test_subsets_are_nested_by_patient_and_do_not_depend_on_the_order_of_records():
    patients = [f"p{number // 3}" for number in range(300)]
    ids = [str(number) for number in range(300)]
    subsets = draw(patients, ids, (0.01, 0.1, 1.0), seed=4)
    assert [subset.patients for subset in subsets] == [1, 10, 100]
    assert [subset.name for subset in subsets] == ["1pct", "10pct", "100pct"]
    rows = [set(subset.rows.tolist()) for subset in subsets]
    assert rows[0] < rows[1] < rows[2] == set(range(300))
    for subset in subsets:  # whole patients
        assert len(subset.rows) == 3 * subset.patients
    turned = draw(patients[::-1], ids[::-1], (0.1,), seed=4)[0]
    assert {ids[::-1][row] for row in turned.rows} == {ids[row] for row in subsets[1].rows}
    assert set(draw(patients, ids, (0.1,), seed=5)[0].rows.tolist()) != rows[1]
    assert [subset.patients for subset in draw([""] * 7, ids[:7], (0.3,), seed=0)] == [3]  # records by themselves


def test_a_share_without_a_positive_or_a_negative_is_named():
    [small, _] = draw(["a", "b", "c", "d"], list("1234"), (0.25, 1.0), seed=0)
    with pytest.raises(UserError, match=r"25 % of the labels \(1 records of 1 patients\) hold no positive of 'edema'"):
        check_classes(small, np.array([[0.0, np.nan]]), ("edema", "nodule"))
    with pytest.raises(UserError, match="hold no negative of 'nodule'; take a larger share"):
        check_classes(small, np.array([[0.0, 1.0], [1.0, np.nan]]), ("edema", "nodule"))
