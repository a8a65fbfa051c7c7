"""The coverage of default intervals and the false alarms of default tests, simulated: pytest -m slow -k coverage.

60 patients with three samples each, one of every class, correlated within the patient.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy.stats import norm

from afloc_jax.evaluation.comparison.compare import OVERALL, difference_rows
from afloc_jax.evaluation.comparison.values import Ranked, Scored, Values
from afloc_jax.evaluation.statistics import discrimination
from afloc_jax.evaluation.statistics.bootstrap import Bootstrap

PATIENTS, FINDINGS, SIMULATIONS = 60, 3, 2000
PATIENT = [f"p{n}" for n in np.repeat(np.arange(PATIENTS), FINDINGS)]
IMAGE = [f"i{n}" for n in range(PATIENTS * FINDINGS)]
CATEGORY = np.tile(np.arange(FINDINGS), PATIENTS)
NAMES = ["a", "b", "c"]


@dataclass
class Share:
    """A count of simulations, as a share in percent."""

    of: float = 0

    def __float__(self) -> float:
        return float(100 * self.of / SIMULATIONS)


def correlated(rng: np.random.Generator, share: float) -> np.ndarray:
    """Standard normal values [patients, findings], of whose variance a `share` is the patient's."""
    own, patient = rng.normal(size=(PATIENTS, FINDINGS)), rng.normal(size=(PATIENTS, 1))
    return np.sqrt(1 - share) * own + np.sqrt(share) * patient


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.7])
def test_coverage_of_means_and_false_alarms_of_their_tests(share):
    """Values like an IoU, in [0, 1], by the mean over classes and by class; two systems that are equally good."""
    covered, of_class, alarms = Share(), Share(), Share()
    by_sample = Share()
    for seed in range(SIMULATIONS):
        rng, bootstrap = np.random.default_rng(seed), Bootstrap(seed=seed)
        first, second = (norm.cdf(correlated(rng, share)).ravel() for _ in range(2))  # uniform: their mean is 0.5
        drawn = bootstrap.units(PATIENT, IMAGE)
        means = bootstrap.means(first[:, None], CATEGORY, FINDINGS, drawn.clusters)[0]
        overall, one = bootstrap.limits_of(means.mean_over(-1)), bootstrap.limits_of(means[0])
        covered.of += overall.lower <= 0.5 <= overall.upper
        of_class.of += one.lower <= 0.5 <= one.upper
        plain = bootstrap.means(first[:, None], CATEGORY, FINDINGS)[0]
        limits = bootstrap.limits_of(plain.mean_over(-1))
        by_sample.of += limits.lower <= 0.5 <= limits.upper
        scored = Scored("iou", np.stack([first, second]), CATEGORY, NAMES, drawn.clusters)
        rows = difference_rows(Values(bootstrap, drawn, None, [scored]), 0, 1)
        assert rows[0].category == OVERALL
        alarms.of += rows[0].p < 0.05
    found = {"coverage": covered, "of a class": of_class, "false alarms": alarms, "of samples": by_sample}
    print({name: float(value) for name, value in found.items()})
    assert 93 <= float(covered) <= 97 and 93 <= float(of_class) <= 97
    assert 3 <= float(alarms) <= 7
    assert float(by_sample) < 93  # the simulation tells the units apart


@pytest.mark.slow
@pytest.mark.parametrize(("distance", "present"), [(0.75, 0.4), (1.2, 0.3)])
def test_coverage_of_auc_and_false_alarms_of_its_tests(distance, present):
    """Binormal scores of two equally good systems; the AUC is Phi(distance / sqrt(2)): 0.70 and 0.80."""
    true, covered, alarms = norm.cdf(distance / np.sqrt(2)), Share(), Share()
    for seed in range(SIMULATIONS):
        rng, bootstrap = np.random.default_rng(seed), Bootstrap(seed=seed)
        labels = rng.random((PATIENTS, FINDINGS)) < present
        scores = np.stack([(correlated(rng, 0.5) + distance * labels).ravel() for _ in range(2)])
        truth, drawn = labels.ravel(), bootstrap.units(PATIENT, IMAGE)

        def auc(weights, truth=truth, first=scores[0]):
            return discrimination.auc(truth, first, weights)

        interval = bootstrap.limits_of(bootstrap.resample(auc, len(truth), drawn.clusters), of_auc=True)
        covered.of += interval.lower <= true <= interval.upper
        ranked = Ranked(truth[:, None].astype(float), scores[:, :, None], ["a"], drawn.clusters)
        (row,) = difference_rows(Values(bootstrap, drawn, ranked, []), 0, 1)
        alarms.of += row.p < 0.05
    print({"coverage": float(covered), "false alarms": float(alarms)})
    assert 93 <= float(covered) <= 97
    assert 3 <= float(alarms) <= 7
