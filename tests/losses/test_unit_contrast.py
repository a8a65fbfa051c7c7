"""Contrast of single units with images, against plain loops."""

import dataclasses

import jax
import jax.numpy as jnp
import jax.test_util
import numpy as np
import pytest
from cases import random_case, random_levels

from afloc_jax.errors import UsageError
from afloc_jax.levels import TextHashes
from afloc_jax.losses import contrastive_losses
from afloc_jax.losses.settings import LossSettings
from afloc_jax.losses.unit_contrast import grouped_unit_contrast, unit_contrast

# Traced as in training; eagerly, each of their operations would be compiled by itself.
unit_contrast = jax.jit(unit_contrast, static_argnames="settings")
grouped_unit_contrast = jax.jit(grouped_unit_contrast, static_argnames="settings")

SETTINGS = LossSettings(
    contrast_temperature=20.0, region_pooling="logsumexp", region_sharpness=15.0, contrast_unit="unit"
)


def in_plain_loops(regions, units, counts, settings, weights=None):
    terms, shares = [], []
    for i, count in enumerate(counts):
        for t in range(1, count):
            logits = {}
            for b in range(len(regions)):
                if counts[b] == 0:
                    continue
                cosines = [
                    regions[b, n] @ units[i, t] / np.linalg.norm(regions[b, n]) / np.linalg.norm(units[i, t])
                    for n in range(regions.shape[1])
                ]
                k = settings.region_sharpness
                logits[b] = settings.contrast_temperature * np.log(np.mean(np.exp(k * np.array(cosines)))) / k
            terms.append(np.log(sum(np.exp(list(logits.values())))) - logits[i])
            shares.append(1.0 if weights is None else weights[i])
    return np.average(terms, weights=shares)


@pytest.mark.parametrize("counts", [[3, 2, 4], [1, 5, 0, 2, 3], [7] * 13])
def test_equals_plain_loops_on_odd_shapes(counts, float64):
    regions, units, lengths = random_case(len(counts), 11, 7, 5, counts)
    loss, total = unit_contrast(regions, units, lengths, SETTINGS)
    np.testing.assert_allclose(loss, in_plain_loops(np.array(regions), np.array(units), counts, SETTINGS), rtol=1e-12)
    assert total == sum(max(count - 1, 0) for count in counts)


def test_weights_weigh_the_units_of_a_caption(float64):
    counts, weights = [3, 2, 4], np.array([1.0, 0.0, 2.5])
    regions, units, lengths = random_case(3, 6, 5, 4, counts)
    loss, _ = unit_contrast(regions, units, lengths, SETTINGS, jnp.asarray(weights))
    expected = in_plain_loops(np.array(regions), np.array(units), counts, SETTINGS, weights)
    np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_gradients_equal_finite_differences(float64):
    regions, units, counts = random_case(3, 4, 3, 5, [2, 3, 0])
    jax.test_util.check_grads(
        lambda regions, units: unit_contrast(regions, units, counts, SETTINGS)[0], (regions, units), 1, ["rev"]
    )


def test_padding_is_never_read():
    regions, units, counts = random_case(4, 9, 6, 8, [4, 2, 0, 3], np.float32)
    gradient = jax.grad(lambda units: unit_contrast(regions, units, counts, SETTINGS)[0])(units)
    unused = (np.arange(6) == 0) | (np.arange(6) >= np.array([4, 2, 0, 3])[:, None])
    assert np.all(np.asarray(gradient)[unused] == 0)
    assert np.all(np.any(np.asarray(gradient)[~unused] != 0, axis=-1))


def test_nothing_to_contrast_and_all_equal_features_stay_finite():
    for regions, units, counts in (
        random_case(3, 5, 4, 6, [1, 0, 1], np.float32),
        (jnp.ones((3, 5, 6)), jnp.ones((3, 4, 6)), jnp.array([2, 4, 1])),
        (jnp.zeros((3, 5, 6)), jnp.zeros((3, 4, 6)), jnp.array([2, 4, 1])),
    ):
        loss, gradients = jax.value_and_grad(
            lambda regions, units, counts=counts: unit_contrast(regions, units, counts, SETTINGS)[0], (0, 1)
        )(regions, units)
        assert np.isfinite(loss)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_groups_contrast_only_among_themselves(float64):
    regions, units, counts = random_case(6, 5, 4, 3, [2, 3, 4, 2, 1, 3])
    parts = [unit_contrast(regions[rows], units[rows], counts[rows], SETTINGS) for rows in (slice(0, 3), slice(3, 6))]
    expected = sum(loss * total for loss, total in parts) / sum(total for _, total in parts)
    _, grouped = grouped_unit_contrast(*(a.reshape(2, 3, *a.shape[1:]) for a in (regions, units, counts)), SETTINGS)
    np.testing.assert_allclose(grouped, expected, rtol=1e-12)


def test_the_entry_point_uses_it_for_the_local_levels_only():
    image, text = random_levels(4, [3, 4, 2, 5], [2, 3, 2, 2])
    weights = {"report": 0.5, "sentence": 2.0, "word": 0.0}
    settings = dataclasses.replace(SETTINGS, weights=weights)
    losses = jax.jit(contrastive_losses, static_argnames="settings")(image, text, settings)
    regions = image.deep.reshape(4, -1, image.deep.shape[-1])
    expected, _ = unit_contrast(regions, text.sentences, text.sentence_count, SETTINGS)
    np.testing.assert_allclose(losses.levels["sentence"], expected, rtol=1e-6)
    np.testing.assert_allclose(losses.total, 0.5 * losses.levels["report"] + 2 * losses.levels["sentence"], rtol=1e-6)
    assert losses.image_to_text["report"] > 0 and losses.image_to_text["sentence"] == 0


def test_slots_of_sentences_that_no_report_can_fill_are_not_compared(float64):
    """With hashes of two sentences a report the slots beyond the third are not read: the loss is that without them."""
    image, text = random_levels(4, [3, 4, 2, 5], [2, 3, 2, 3])
    padded = jnp.pad(text.sentences, ((0, 0), (0, 7), (0, 0)), constant_values=jnp.nan)
    hashes = TextHashes(jnp.zeros((4, 2), jnp.uint32), jnp.zeros((4, text.sentences.shape[1] - 1, 2), jnp.uint32))
    settings = dataclasses.replace(SETTINGS, weights={"report": 0.0, "sentence": 1.0, "word": 0.0})

    def loss(sentences, hashes):
        return contrastive_losses(image, dataclasses.replace(text, sentences=sentences, hashes=hashes), settings).total

    expected, gradient = jax.jit(jax.value_and_grad(loss))(text.sentences, None)
    found, of_padded = jax.jit(jax.value_and_grad(loss))(padded, hashes)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    slots = text.sentences.shape[1]
    np.testing.assert_allclose(of_padded[:, :slots], gradient, rtol=1e-12, atol=1e-15)
    assert not of_padded[:, slots:].any()


def test_the_published_attention_cannot_contrast_single_units():
    with pytest.raises(UsageError, match="region_pooling"):
        LossSettings(contrast_unit="unit")
