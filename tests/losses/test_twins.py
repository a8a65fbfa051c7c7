"""Reports with the same text: plain loops for the definition, then every implementation against the definition."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_levels
from ring_cases import BATCH, SENTENCES, WORDS, losses_and_gradients

from afloc_jax.errors import UsageError
from afloc_jax.levels import TextHashes
from afloc_jax.losses import LossSettings, contrast, contrastive_losses
from afloc_jax.losses.definition import identical, share_a_sentence
from afloc_jax.training.mesh import build_mesh
from data_pipelines.hashes import text_hashes

# Twins within a group of four and across groups, a chain (a b, b c), two that are twins as a whole, and an empty one.
REPORTS = [
    "ab", "c", "bd", "e", "f", "fg", "g", "ab", "h", "ba", "", "i", "ab", "ab", "k", "lkm",
]  # fmt: skip


def hashes():
    made = text_hashes(REPORTS, 16)
    return TextHashes(jnp.asarray(made["report_hash"]), jnp.asarray(made["sentence_hashes"]))


def plain_twins(reports):
    """`(share a sentence, same text)`, from the texts."""
    pairs = [(set(a) & set(b), a == b) for a, b in itertools.product(reports, repeat=2)]
    return tuple(np.array([bool(pair[kind]) for pair in pairs]).reshape(len(reports), -1) for kind in (0, 1))


def in_plain_loops(similarity, weights, included, twins, treatment):
    losses = []
    for s, share in ((similarity, weights), (similarity.T, weights)):
        terms = []
        for i in np.flatnonzero(included):
            others = [j for j in np.flatnonzero(included) if j != i and twins[i, j]]
            seen = [j for j in np.flatnonzero(included) if not (treatment == "mask" and j in others)]
            right = [i, *others] if treatment == "share" else [i]
            terms.append(share[i] * (np.log(np.exp(s[i, seen]).sum()) - s[i, right].mean()))
        losses.append(sum(terms) / share[included].sum())
    return losses


def test_hashes_say_which_reports_are_twins():
    found = hashes()
    shared, same = plain_twins(REPORTS)
    np.testing.assert_array_equal(share_a_sentence(found.sentences, found.sentences), shared)
    np.testing.assert_array_equal(identical(found.report, found.report), same)
    assert shared[0, 2] and not shared[0, 1] and same[0, 7] and not same[0, 9], "the order of sentences is of the text"
    assert not shared[10].any(), "an empty report shares no sentence"


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("treatment", ["negative", "mask", "share"])
def test_the_definition_is_that_of_plain_loops(treatment):
    rng = np.random.default_rng(0)
    similarity, weights = 3 * rng.standard_normal((BATCH, BATCH)), rng.uniform(0.1, 2, BATCH)
    included = np.ones(BATCH, bool)
    included[[3, 7]] = False
    twins = plain_twins(REPORTS)[0] | np.eye(BATCH, dtype=bool)
    arrays = (jnp.asarray(array) for array in (similarity, weights, included, twins))
    found = contrast(*arrays, treatment)
    assert_all_close(found, in_plain_loops(similarity, weights, included, twins, treatment), rtol=1e-13)


def case(words=WORDS, sentences=SENTENCES):
    image, text = random_levels(BATCH, words, sentences, dtype=np.float64)
    return image, text.replace(hashes=hashes()), jnp.asarray(np.random.default_rng(5).random(BATCH))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("treatment", ["mask", "share"])
@pytest.mark.parametrize(
    ("implementation", "devices", "group"),
    [("tiled", 1, 0), ("tiled", 1, 4), ("ring", 8, 0), ("ring", 8, 4), ("ring", 2, 4), ("ring", 1, 0)],
)
def test_losses_and_gradients_are_those_of_the_definition(treatment, implementation, devices, group):
    """Rings of all devices, of two, and groups that one device holds alone; with weights and a pair left out."""
    if len(jax.devices()) < devices:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    words, sentences = [*WORDS[:7], 0, *WORDS[8:]], [*SENTENCES[:7], 0, *SENTENCES[8:]]
    image, text, weights = case(words, sentences)
    options = {"contrast_group": group, "twins": treatment, "weights": {"report": 1, "sentence": 0.5, "word": 2}}
    mesh = build_mesh(jax.devices()[:devices]) if implementation == "ring" else None
    found = losses_and_gradients(implementation, image, text, mesh, weights, **options)
    expected = losses_and_gradients("definition", image, text, None, weights, **options)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)
    without = losses_and_gradients("definition", image, text, None, weights, **options | {"twins": "negative"})
    for level, loss in expected[0].levels.items():
        assert abs(loss - without[0].levels[level]) > 1e-3, level


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("treatment", ["mask", "share"])
def test_single_units_too_know_twins(treatment):
    image, text, weights = case()
    settings = {"contrast_unit": "unit", "region_pooling": "logsumexp", "weights": {"report": 0, "word": 0}}
    found = losses_and_gradients("tiled", image, text, None, weights, twins=treatment, **settings)
    k, temperature = LossSettings().region_sharpness, LossSettings().contrast_temperature
    regions = np.asarray(image.deep).reshape(BATCH, -1, 8)
    regions = regions / np.linalg.norm(regions, axis=-1, keepdims=True)
    units = np.asarray(text.sentences) / np.linalg.norm(text.sentences, axis=-1, keepdims=True)
    terms, shares, twins = [], [], plain_twins(REPORTS)[0]
    for i, count in enumerate(SENTENCES):
        others = [b for b in range(BATCH) if b != i and twins[i, b]]
        for t in range(1, count):
            r = temperature * np.log(np.exp(k * regions @ units[i, t]).mean(axis=1)) / k
            seen = np.delete(r, others) if treatment == "mask" else r
            right = r[[i, *others]].mean() if treatment == "share" else r[i]
            terms.append(np.log(np.exp(seen).sum()) - right)
            shares.append(weights[i])
    np.testing.assert_allclose(found[0].levels["sentence"], np.average(terms, weights=shares), rtol=1e-12)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found[1]))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("treatment", ["mask", "share"])
@pytest.mark.parametrize("group", [0, 4, 2])
def test_devices_without_a_ring_find_the_same_twins(treatment, group):
    """Single units are gathered, and are in no ring; each device finds the twins of its own pairs all the same."""
    if len(jax.devices()) < 8:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    image, text, weights = case()
    options = {"contrast_unit": "unit", "region_pooling": "logsumexp", "weights": {"report": 0, "word": 0}}
    options |= {"contrast_group": group, "twins": treatment}
    one = losses_and_gradients("tiled", image, text, None, weights, **options)
    eight = losses_and_gradients("tiled", image, text, build_mesh(jax.devices()[:8]), weights, **options)
    assert_all_close(eight[0], one[0], rtol=1e-12)
    assert_all_close(eight[1], one[1], rtol=0, atol=1e-12)
    assert float(one[0].twins["local"]) > 0


@pytest.mark.parametrize("group", [0, 4])
@pytest.mark.parametrize("devices", [0, 8])
def test_the_share_of_twins_is_counted_among_contrasted_pairs(group, devices):
    if len(jax.devices()) < devices:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    image, text = random_levels(BATCH, [*WORDS[:7], 0, *WORDS[8:]], SENTENCES)
    mesh = build_mesh(jax.devices()[:devices]) if devices else None
    implementation, text = "ring" if devices else "tiled", text.replace(hashes=hashes())
    found = losses_and_gradients(implementation, image, text, mesh, contrast_group=group)[0].twins
    place = np.arange(BATCH) // (group or BATCH)
    seen = (place[:, None] == place) & ~np.eye(BATCH, dtype=bool)
    seen[7] = seen[:, 7] = False
    for kind, twins in zip(("local", "report"), plain_twins(REPORTS), strict=True):
        np.testing.assert_allclose(found[kind], twins[seen].mean(), rtol=1e-6)


def test_without_hashes_twins_are_negatives_or_an_error():
    image, text = random_levels(4, [3, 4, 2, 5], [2, 3, 2, 2])
    assert contrastive_losses(image, text, LossSettings()).twins == {}
    with pytest.raises(UsageError, match=r"loss\.twins = 'mask': needs the hashes of the texts"):
        contrastive_losses(image, text, LossSettings(twins="mask"))
