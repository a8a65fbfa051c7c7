"""Captions that were made false: plain loops for the definition, then every implementation against the definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_levels
from ring_cases import BATCH, WORDS

from afloc_jax.errors import UsageError
from afloc_jax.levels import MadeCaptions, TextHashes
from afloc_jax.losses import LossSettings, contrast, contrastive_losses
from afloc_jax.losses.definition import is_stated, local_similarity, made_similarity, share_a_sentence
from afloc_jax.training.mesh import batch_sharding, build_mesh
from data_pipelines.hashes import hash_of, text_hashes

# Sentences are letters. Twins within a group of four and across groups; one report is empty.
REPORTS = ["ab", "c", "bdx", "e", "f", "fg", "gf", "ab", "h", "bay", "", "i", "ab", "ab", "kf", "lkm"]
COUNTS = [len(report) + 1 for report in REPORTS]
SLOTS, NUMBER = 4, 3


def made_texts():
    """For each report and caption, each sentence as made and in plain words; None where it was not changed."""
    rng = np.random.default_rng(3)
    letters = [*"abcdefghxyz"]

    def of_sentence():
        return None if rng.random() < 0.3 else tuple(rng.choice(letters, 2))

    return [[[of_sentence() for _ in report] for _ in range(NUMBER)] for report in REPORTS]


def case(seed=0):
    """Both towers' outputs in float64, with hashes and hard negatives; one made caption was cut by a sentence."""
    image, text = random_levels(BATCH, WORDS, COUNTS, dtype=np.float64)
    rng = np.random.default_rng(seed)
    hashes = np.zeros((BATCH, NUMBER, SLOTS - 1, 2, 2), np.uint32)
    for i, captions in enumerate(made_texts()):
        for m, sentences in enumerate(captions):
            for s, texts in enumerate(sentences):
                if texts is not None:
                    hashes[i, m, s] = [hash_of(text) for text in texts]
    counts = np.repeat(np.array(COUNTS)[:, None], NUMBER, axis=1)
    counts[2, 1] -= 1
    sentences = rng.standard_normal((BATCH, NUMBER, SLOTS, 8))
    made = MadeCaptions(jnp.asarray(sentences), jnp.asarray(counts), jnp.asarray(hashes))
    found = text_hashes([[*report] for report in REPORTS], 2 * SLOTS)
    text = text.replace(
        hashes=TextHashes(jnp.asarray(found["report_hash"]), jnp.asarray(found["sentence_hashes"])), made=made
    )
    return image, text


def plain_negatives(group):
    """[i][m][s] whether the sentence is a hard negative, from the texts."""
    false = np.zeros((BATCH, NUMBER, SLOTS - 1), bool)
    for i, captions in enumerate(made_texts()):
        first = i // (group or BATCH) * (group or BATCH)
        twins = [j for j in range(first, first + (group or BATCH)) if set(REPORTS[i]) & set(REPORTS[j])]
        stated = {sentence for j in twins for sentence in REPORTS[j]}
        for m, sentences in enumerate(captions):
            there = len(sentences) - ((i, m) == (2, 1))
            for s, texts in enumerate(sentences[:there]):
                false[i, m, s] = texts is not None and not stated & set(texts)
    return false


def losses_and_gradients(implementation, image, text, mesh=None, sample_weights=None, **changes):
    """`(ContrastiveLosses, gradients by images, sentences and made sentences)`."""
    settings = LossSettings(implementation=implementation, **changes)

    def loss(deep, sentences, made):
        levels = image.replace(deep=deep)
        texts = text.replace(sentences=sentences, made=text.made and text.made.replace(sentences=made))
        losses = contrastive_losses(levels, texts, settings, sample_weights, mesh)
        return losses.total, losses

    made = text.made.sentences
    if mesh is not None:
        image, text, made = jax.device_put((image, text, made), batch_sharding(mesh))
    step = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))
    (_, losses), gradients = step(image.deep, text.sentences, made)
    return losses, gradients


@pytest.mark.usefixtures("float64")
def test_what_a_twin_states_is_no_negative():
    """By what is read or by its plain words; never because of a report that shares no sentence."""
    _, text = case()
    for group in (4, BATCH):
        hashes, sentences = (
            array.reshape(-1, group, *array.shape[1:]) for array in (text.made.hashes, text.hashes.sentences)
        )
        stated = is_stated(hashes, sentences, share_a_sentence(sentences, sentences)).reshape(BATCH, NUMBER, -1)
        there = np.arange(1, SLOTS) < np.asarray(text.made.sentence_count)[..., None]
        false = there & np.asarray(text.made.hashes).any(axis=(-2, -1)) & ~np.asarray(stated)
        expected = plain_negatives(group)
        np.testing.assert_array_equal(false, expected)
        assert expected.any() and not expected.all()
    assert (plain_negatives(4) != plain_negatives(BATCH)).any(), "twins of another group would show"


@pytest.mark.usefixtures("float64")
def test_the_definition_is_that_of_plain_loops():
    image, text = case()
    regions, false = image.deep.reshape(BATCH, -1, 8), plain_negatives(0)
    sides = regions, text.made.sentences, text.made.sentence_count
    rows, of_one = jax.jit(made_similarity)(*sides, jnp.asarray(false)), jax.jit(local_similarity)
    for i in range(BATCH):
        own = of_one(regions[i : i + 1], *(side[i] for side in sides[1:]))[0]
        np.testing.assert_allclose(rows[i], np.where(false[i].any(axis=-1), own, -np.inf), rtol=1e-13)

    similarity = np.random.default_rng(1).standard_normal((BATCH, BATCH))
    included = np.array(COUNTS) > 1
    found = contrast(jnp.asarray(similarity), None, jnp.asarray(included), made=rows)
    by_row = [
        np.log(np.exp(similarity[i, included]).sum() + np.exp(rows[i]).sum()) - similarity[i, i]
        for i in np.flatnonzero(included)
    ]
    without = contrast(jnp.asarray(similarity), None, jnp.asarray(included))
    np.testing.assert_allclose(found, (np.mean(by_row), without[1]), rtol=1e-13)
    assert found[0] > without[0]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("implementation", "devices", "group", "twins"),
    [
        ("tiled", 1, 0, "negative"),
        ("tiled", 1, 4, "mask"),
        ("ring", 8, 0, "share"),
        ("ring", 8, 4, "negative"),
        ("ring", 2, 4, "mask"),
        ("ring", 1, 0, "negative"),
    ],
)
def test_losses_and_gradients_are_those_of_the_definition(implementation, devices, group, twins):
    """Rings of all devices, of two, and groups that one device holds alone; with weights and a pair left out."""
    if len(jax.devices()) < devices:
        pytest.skip("SKIPPED: needs eight devices, see tests/conftest.py")
    image, text = case()
    text = text.replace(sentence_count=text.sentence_count.at[10].set(0), word_count=text.word_count.at[10].set(0))
    weights = jnp.asarray(np.random.default_rng(5).random(BATCH))
    options = {
        "hard_negatives": NUMBER,
        "contrast_group": group,
        "twins": twins,
        "weights": {"report": 0, "sentence": 0.5, "word": 0},
    }
    mesh = build_mesh(jax.devices()[:devices]) if implementation == "ring" else None
    found = losses_and_gradients(implementation, image, text, mesh, weights, **options)
    expected = losses_and_gradients("definition", image, text, None, weights, **options)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)
    counted = np.asarray(text.made.sentence_count)[..., None] > np.arange(SLOTS)
    for gradients in (found[1], expected[1]):
        assert np.all(np.asarray(gradients[2])[~counted] == 0), "padding must get no gradient"
        assert np.any(np.asarray(gradients[2]) != 0)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group", [0, 4])
def test_a_single_unit_is_told_from_what_was_made_from_it(group):
    image, text = case()
    weights = np.random.default_rng(5).random(BATCH)
    settings = {"contrast_unit": "unit", "region_pooling": "logsumexp", "weights": {"report": 0, "word": 0}}
    options = {**settings, "contrast_group": group}
    found, gradients = losses_and_gradients(
        "tiled", image, text, None, jnp.asarray(weights), hard_negatives=NUMBER, **options
    )
    k, temperature = LossSettings().region_sharpness, LossSettings().contrast_temperature
    regions, units, made = (
        np.asarray(array) / np.linalg.norm(array, axis=-1, keepdims=True)
        for array in (image.deep.reshape(BATCH, -1, 8), text.sentences, text.made.sentences)
    )

    def relevance(i, unit):
        return temperature * np.log(np.exp(k * regions[i] @ unit).mean()) / k

    false, terms, shares = plain_negatives(group), [], []
    for i, report in enumerate(REPORTS):
        for s in range(len(report)):
            own = relevance(i, units[i, s + 1])
            others = [relevance(i, made[i, m, s + 1]) for m in range(NUMBER) if false[i, m, s]]
            terms.append(np.log(np.exp([own, *others]).sum()) - own)
            shares.append(weights[i])
    np.testing.assert_allclose(found.image_to_text["sentence"], np.average(terms, weights=shares), rtol=1e-12)
    without, _ = losses_and_gradients("tiled", image, text, None, jnp.asarray(weights), **options)
    assert without.image_to_text["sentence"] == 0
    np.testing.assert_allclose(found.text_to_image["sentence"], without.text_to_image["sentence"], rtol=1e-12)
    unused = np.pad(~false, ((0, 0), (0, 0), (1, 0)), constant_values=True)
    assert np.all(np.asarray(gradients[2])[unused] == 0) and np.all(np.any(np.asarray(gradients[2])[~unused], axis=-1))
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.usefixtures("float64")
def test_the_gradient_of_single_units_is_that_of_finite_differences():
    image, text = case()
    settings = LossSettings(
        contrast_unit="unit", region_pooling="logsumexp", weights={"report": 0, "word": 0}, hard_negatives=NUMBER
    )

    @jax.jit
    def total(deep, sentences, made):
        texts = text.replace(sentences=sentences, made=text.made.replace(sentences=made))
        return contrastive_losses(image.replace(deep=deep), texts, settings).total

    inputs = image.deep, text.sentences, text.made.sentences
    gradients = jax.jit(jax.grad(total, (0, 1, 2)))(*inputs)
    rng = np.random.default_rng(2)
    steps = tuple(jnp.asarray(rng.standard_normal(array.shape)) for array in inputs)
    ahead, behind = (
        total(*(array + sign * 1e-6 * step for array, step in zip(inputs, steps, strict=True))) for sign in (1, -1)
    )
    slope = sum((gradient * step).sum() for gradient, step in zip(gradients, steps, strict=True))
    np.testing.assert_allclose((ahead - behind) / 2e-6, slope, rtol=1e-6)


def test_none_made_is_the_loss_without(float64):
    """Nothing changed, or all of it stated: the values of `hard_negatives = 0`."""
    image, text = case()
    hashes = text.made.hashes
    nothing = text.replace(made=text.made.replace(hashes=jnp.zeros_like(hashes)))
    own = jnp.broadcast_to(text.hashes.sentences[:, None, : SLOTS - 1, None], hashes.shape)
    all_stated = text.replace(made=text.made.replace(hashes=own))
    for options in ({}, {"contrast_unit": "unit", "region_pooling": "logsumexp"}):
        without, _ = losses_and_gradients("tiled", image, text, **options)
        for texts in (nothing, all_stated):
            found, gradients = losses_and_gradients("tiled", image, texts, hard_negatives=NUMBER, **options)
            assert_all_close(found.levels, without.levels, rtol=1e-13)
            assert not np.asarray(gradients[2]).any()


def test_what_is_missing_is_named():
    image, text = case()
    with pytest.raises(UsageError, match=r"loss\.hard_negatives = 2: are negatives of the sentence level"):
        LossSettings(hard_negatives=2, weights={"sentence": 0})
    for texts in (text.replace(made=None), text.replace(hashes=None), text):
        with pytest.raises(UsageError, match=r"loss\.hard_negatives = 2: needs as many captions made"):
            contrastive_losses(image, texts, LossSettings(hard_negatives=2))
