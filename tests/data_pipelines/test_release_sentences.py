"""Sentences are drawn as in the published release, whose rule tests/reference states in its own words."""

from collections import Counter

import numpy as np
import pytest
from scipy import stats

from data_pipelines.batches import sample_sentences
from tests.reference import release_sentences

MODES = {"release_subset": 1, "release_impression": 2}
# The number of sentences, and how many of them are the impression.
REPORTS = [(1, 0), (1, 1), (2, 1), (3, 0), (4, 1), (4, 4), (5, 2)]
SHARE = 1_000_000 // (len(MODES) * len(REPORTS)) + 1


def report(count, impression_count):
    """The sentences as our records have them, impression first, and as the release's list has them."""
    ours = [f"sentence {number}" for number in range(count)]
    return ours, [*ours[impression_count:], *ours[:impression_count]]


def unlikeliness(counts, expected):
    """The p-value of the counts of a number of draws, of which no outcome was impossible."""
    assert set(counts) <= set(expected), set(counts) - set(expected)
    if len(expected) == 1:
        return 1.0
    observed = np.array([counts[outcome] for outcome in expected])
    probabilities = np.array([float(probability) for probability in expected.values()])
    return stats.chisquare(observed, observed.sum() * probabilities / probabilities.sum()).pvalue


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("count", "impression_count"), REPORTS)
def test_a_million_samples_follow_the_rule_of_the_release(mode, count, impression_count):
    """A million over all modes and reports. A rule that gives one outcome a hundredth of all draws too many fails."""
    ours, theirs = report(count, impression_count)
    expected = release_sentences.outcomes(theirs, impression_count, MODES[mode])
    assert sum(expected.values()) == 1
    rng = np.random.default_rng(15)
    counts = Counter(tuple(sample_sentences(ours, impression_count, mode, rng)) for _ in range(SHARE))
    assert unlikeliness(counts, expected) > 1e-4
    if mode == "release_subset" and count >= 2:
        assert max(map(len, counts)) == count - 1, "the whole report is never drawn"


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("count", "impression_count"), [(2, 1), (4, 1)])
def test_the_exact_probabilities_are_those_of_numpys_own_functions(mode, count, impression_count):
    """The reference against itself: what `outcomes` says of `randint` and `choice` is what they do."""
    _, theirs = report(count, impression_count)
    random, number = np.random.RandomState(1), MODES[mode]
    counts = Counter(release_sentences.draw(random, theirs, impression_count, number) for _ in range(20_000))
    assert unlikeliness(counts, release_sentences.outcomes(theirs, impression_count, number)) > 1e-4


@pytest.mark.parametrize(("mode", "own"), [("release_subset", "subset"), ("release_impression", "impression")])
def test_our_own_modes_are_told_from_those_of_the_release(mode, own):
    """The test above can fail: the modes that were there before do not pass it."""
    ours, theirs = report(4, 1)
    rng = np.random.default_rng(15)
    drawn = {tuple(sample_sentences(ours, 1, own, rng)) for _ in range(1000)}
    assert drawn - set(release_sentences.outcomes(theirs, 1, MODES[mode]))
