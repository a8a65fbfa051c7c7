"""Effective ranks of embeddings against the singular values of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.losses import LossSettings
from afloc_jax.losses.settings import LevelWeights
from afloc_jax.training.ranks import effective_rank, ranks


def by_singular_values(vectors: np.ndarray) -> float:
    """The participation ratio of the squared singular values of the vectors of length 1."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    energy = np.linalg.svd(vectors.astype(np.float64), compute_uv=False) ** 2
    return energy.sum() ** 2 / (energy**2).sum()


@pytest.mark.parametrize(("pairs", "width"), [(7, 12), (33, 5), (1, 3)])
def test_effective_rank_is_that_of_the_singular_values(pairs, width):
    rng = np.random.default_rng(pairs)
    vectors = rng.normal(1, 1, (pairs + 3, width)) * rng.uniform(0.01, 100, (pairs + 3, 1))
    vectors[pairs] = 0  # a vector of length 0 has no direction
    included = np.arange(pairs + 3) <= pairs
    found = effective_rank(jnp.asarray(vectors), jnp.asarray(included))
    assert float(found) == pytest.approx(by_singular_values(vectors[:pairs]), rel=1e-5)
    assert effective_rank(jnp.zeros((4, 3)), jnp.ones(4, bool)) == 1, "no vector has a direction"


def test_orthogonal_vectors_count_one_each_and_multiples_as_one():
    assert float(effective_rank(jnp.eye(6), jnp.ones(6, bool))) == pytest.approx(6)
    line = jnp.outer(jnp.array([1.0, -2.0, 0.001, 3e4]), jnp.array([0.3, 0.1, -2.0]))
    assert float(effective_rank(line.astype(jnp.bfloat16), jnp.ones(4, bool))) == pytest.approx(1, abs=1e-3)


def levels(rng, pairs, projection):
    """Levels of which regions and units that may not be picked, behind the count or of an empty pair, are NaN."""
    counts = np.array([3, 1, 2, 4, 0])
    words, sentences = rng.normal(size=(pairs, 5, 6)), rng.normal(size=(pairs, 5, 6))
    for pair, count in enumerate(counts):
        words[pair, max(count, 1) :] = sentences[pair, max(count, 1) :] = np.nan
    features = rng.normal(size=(pairs, 2, 5, 4))
    image = ImageLevels(
        jnp.asarray(features @ projection), jnp.asarray(rng.normal(size=(pairs, 3, 3, 6))),
        jnp.asarray(rng.normal(size=(pairs, 6))), (jnp.asarray(features), jnp.asarray(projection)),
    )  # fmt: skip
    report = jnp.asarray(rng.normal(size=(pairs, 6)))
    return image, TextLevels(jnp.asarray(words), jnp.asarray(sentences), report, *[jnp.asarray(counts)] * 2), counts


def test_local_levels_give_one_region_and_one_valid_unit_of_each_pair_without_gradient():
    rng = np.random.default_rng(0)
    image, text, counts = levels(rng, 5, rng.normal(size=(4, 6)))
    found = ranks(image, text, LossSettings())
    whole = {f"{side}/{level}" for side in ("image", "text") for level in ("report", "sentence", "word")}
    assert found.keys() == whole
    there = np.flatnonzero(counts)
    regions = np.asarray(image.shallow).reshape(5, 10, 6)[there, there * 6 % 10]
    words = np.asarray(text.words)[there, there % counts[there]]
    assert float(found["image/word"]) == pytest.approx(by_singular_values(regions), rel=1e-5)
    assert float(found["text/word"]) == pytest.approx(by_singular_values(words), rel=1e-5)
    assert float(found["image/report"]) == pytest.approx(by_singular_values(np.asarray(image.whole)[there]), rel=1e-5)

    low = ranks(image, text, LossSettings(low_rank=True))
    assert float(low["image/word"]) == pytest.approx(float(found["image/word"]), rel=1e-4)
    only = ranks(image, text, LossSettings(weights=LevelWeights(report=0.0, sentence=1.0, word=0.0)))
    assert only.keys() == {"image/sentence", "text/sentence"}
    gradient = jax.grad(lambda image: ranks(image, text, LossSettings())["image/report"])(image)
    assert not any(np.asarray(leaf).any() for leaf in jax.tree.leaves(gradient))
