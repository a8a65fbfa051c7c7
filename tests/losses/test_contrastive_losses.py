"""The entry point: levels, groups, weights, padding, and errors that say what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_levels

from afloc_jax.errors import UsageError
from afloc_jax.losses import LossSettings, contrastive_losses

WORDS, SENTENCES = [9, 1, 3, 14], [4, 1, 2, 3]


def run(image, text, settings, weights=None):
    """The losses, compiled."""
    return jax.jit(lambda *inputs: contrastive_losses(*inputs[:2], settings, inputs[2]))(image, text, weights)


@pytest.mark.usefixtures("float64")
def test_both_implementations_agree_on_every_level_and_option():
    image, text = random_levels(4, WORDS, SENTENCES, dtype=np.float64)
    weights = jnp.array([1.0, 0.5, 0.0, 2.0])
    for changes in ({}, {"contrast_group": 2, "region_pooling": "logsumexp"}):
        tiled, definition = (
            run(image, text, LossSettings(implementation=name, **changes), weights) for name in ("tiled", "definition")
        )
        assert_all_close(tiled, definition, rtol=1e-12)
        assert list(tiled.levels) == ["report", "sentence", "word"]


@pytest.mark.usefixtures("float64")
def test_the_word_level_from_its_factors_is_the_same_loss_with_the_same_gradients():
    image, text = random_levels(4, WORDS, SENTENCES, dtype=np.float64)
    rng = np.random.default_rng(1)
    features, kernel = jnp.asarray(rng.standard_normal((4, 5, 4, 6))), jnp.asarray(rng.standard_normal((6, 8)))

    def total(features, kernel, words, low_rank):
        levels = image.replace(shallow=features @ kernel, shallow_factors=(features, kernel))
        settings = LossSettings(low_rank=low_rank, contrast_group=2)
        return contrastive_losses(levels, text.replace(words=words), settings).total

    evaluate = jax.jit(jax.value_and_grad(total, (0, 1, 2)), static_argnums=3)
    inputs = features, kernel, text.words
    assert_all_close(evaluate(*inputs, True), evaluate(*inputs, False), rtol=1e-10, atol=1e-11)
    with pytest.raises(UsageError, match="shallow_factors"):
        run(image, text, LossSettings(low_rank=True))


def test_total_is_the_weighted_sum_and_levels_without_weight_are_not_computed():
    image, text = random_levels(4, WORDS, SENTENCES)
    losses = run(image, text, LossSettings(weights={"report": 2.0, "sentence": 0.0, "word": 0.5}))
    assert set(losses.levels) == {"report", "word"}
    np.testing.assert_allclose(losses.total, 2 * losses.levels["report"] + 0.5 * losses.levels["word"], rtol=1e-6)
    for level, loss in losses.levels.items():
        np.testing.assert_allclose(loss, losses.image_to_text[level] + losses.text_to_image[level], rtol=1e-6)
    gone = image.replace(deep=jnp.full_like(image.deep, jnp.nan))
    off = LossSettings(weights={"report": 2.0, "sentence": 0.0, "word": 0.5})
    assert_all_close(run(gone, text, off), losses)


def test_a_contrast_group_is_a_batch_of_its_own():
    image, text = random_levels(4, WORDS, SENTENCES)
    grouped = run(image, text, LossSettings(contrast_group=2))
    losses = jax.jit(lambda *part: contrastive_losses(*part, LossSettings()))
    parts = [jax.tree.map(lambda leaf, i=i: leaf[i : i + 2], (image, text)) for i in (0, 2)]
    alone = [losses(*part) for part in parts]
    mean = jax.tree.map(lambda *leaves: sum(leaves) / 2, *alone)
    assert_all_close(grouped, mean, rtol=1e-5)


@pytest.mark.parametrize("implementation", ["tiled", "definition"])
def test_a_batch_padded_with_empty_captions_has_the_loss_of_the_unpadded_one(implementation):
    image, text = random_levels(5, [*WORDS, 0], [*SENTENCES, 0])
    settings = LossSettings(implementation=implementation)
    padded = run(image, text, settings)
    unpadded = run(*jax.tree.map(lambda leaf: leaf[:4], (image, text)), settings)
    assert_all_close(padded, unpadded, rtol=1e-5)

    def total(image, words):
        return contrastive_losses(image, text.replace(words=words), settings).total

    gradients = jax.jit(jax.grad(total, (0, 1)))(image, text.words)
    assert all(np.isfinite(leaf).all() and not leaf[4].any() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize("implementation", ["tiled", "definition"])
def test_all_equal_features_give_the_loss_of_guessing(implementation):
    image, text = random_levels(3, [4, 4, 4], [2, 2, 2])
    features = image, text.words, text.sentences, text.report

    def total(image, words, sentences, report):
        filled = text.replace(words=words, sentences=sentences, report=report)
        losses = contrastive_losses(image, filled, LossSettings(implementation=implementation))
        return losses.total, losses

    step = jax.jit(jax.value_and_grad(total, (0, 1, 2, 3), has_aux=True))
    for value in (0.0, 1.0):
        equal = jax.tree.map(lambda leaf, value=value: np.full(leaf.shape, value, leaf.dtype), features)
        (_, losses), gradients = step(*equal)
        np.testing.assert_allclose(list(losses.levels.values()), 2 * np.log(3), rtol=1e-5)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"contrast_group": 3}, r"loss\.contrast_group = 3: must be 0 \(the whole batch\) or a divisor of .* 4 pairs"),
        ({"contrast_group": -1}, r"loss\.contrast_group = -1: must be 0"),
        ({"contrast_group": 1}, r"loss\.contrast_group = 1: must be 0 \(the whole batch\) or at least 2"),
        ({"contrast_groups": 2}, r"loss\.contrast_groups: unknown key; did you mean contrast_group"),
        ({"implementation": "fast"}, "'fast': must be one of auto, definition, tiled, ring"),
        ({"tile_memory": 0}, "loss.tile_memory = '0': must be \"auto\" or MiB"),
        ({"tile_memory": 0.5}, "loss.tile_memory = 0.5: must be of type str"),
        ({"tile_memory": "large"}, "loss.tile_memory = 'large': must be \"auto\" or MiB"),
        ({"implementation": "definition", "low_rank": True}, "low_rank = True: needs loss.implementation = 'tiled'"),
        ({"region_pooling": "max"}, "'max': must be one of attention, logsumexp"),
        ({"contrast_unit": "unit", "region_pooling": "logsumexp", "low_rank": True}, "contrast_unit = 'caption'"),
        ({"pooling_temperature": 0.0}, r"loss\.pooling_temperature = 0.0: must be greater than 0"),
        ({"weights": {"report": -1.0}}, r"loss\.weights\.report = -1.0: must be 0 or greater"),
        ({"weights": dict.fromkeys(("report", "sentence", "word"), 0)}, "loss.weights: all 0, nothing to learn from"),
        ({"weights": {"phrase": 1.0}}, r"loss\.weights\.phrase: unknown key"),
    ],
)
def test_a_wrong_setting_is_named(changes, message):
    image, text = random_levels(4, WORDS, SENTENCES)
    with pytest.raises(UsageError, match=message):
        contrastive_losses(image, text, LossSettings.read(changes))
