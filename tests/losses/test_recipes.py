"""The objectives of configs/gloria.py and configs/radzero.py against their published formulas, in plain NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_levels

from afloc_jax.errors import UsageError
from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.settings import plain
from configs import gloria, radzero

pytestmark = pytest.mark.usefixtures("float64")

WORDS, SENTENCES = [5, 2, 7, 3, 4, 1], [3, 2, 4, 1, 5, 2]


def softmax(values, axis):
    exponentials = np.exp(values - values.max(axis=axis, keepdims=True))
    return exponentials / exponentials.sum(axis=axis, keepdims=True)


def cosine(one, other):
    return one @ other / np.linalg.norm(one) / np.linalg.norm(other)


def case():
    image, text = random_levels(6, WORDS, SENTENCES, dtype=np.float64)
    return image, text, np.asarray(image.deep).reshape(6, -1, 8)


def losses_of(recipe, image, text, **changes):
    settings = LossSettings.read({**plain(recipe.get_config().loss), **changes})
    return jax.jit(lambda *levels: contrastive_losses(*levels, settings))(image, text)


def log_probabilities(similarity):
    """Mean -log probability of the true pairs, along rows and along columns."""
    rows, columns = (np.diagonal(softmax(similarity, axis)) for axis in (1, 0))
    return -np.log(rows).mean() - np.log(columns).mean()


def test_gloria_has_the_published_local_and_global_loss():
    """For word t of report i and region n of image b, s = v_n . w_t: attention, context, matching score, posterior."""
    image, text, regions = case()
    local, whole = np.zeros((2, 6, 6))
    for b in range(6):
        for i in range(6):
            words = np.asarray(text.words[i, : WORDS[i]])
            s = softmax(regions[b] @ words.T, axis=1)  # over the words
            attention = softmax(4.0 * s, axis=0)  # over the regions
            context = attention.T @ regions[b]
            matching = [np.exp(5.0 * cosine(word, c)) for word, c in zip(words, context, strict=True)]
            local[b, i] = 10.0 * np.log(np.sum(matching))
            whole[b, i] = 10.0 * cosine(np.asarray(image.whole[b]), np.asarray(text.report[i]))
    found = losses_of(gloria, image, text)
    assert found.levels.keys() == {"word", "report"}
    np.testing.assert_allclose(found.levels["word"], log_probabilities(local), rtol=1e-12)
    np.testing.assert_allclose(found.levels["report"], log_probabilities(whole), rtol=1e-12)
    np.testing.assert_allclose(found.total, log_probabilities(local) + log_probabilities(whole), rtol=1e-12)
    with pytest.raises(UsageError, match=r"low_rank = True: needs loss\.word_map = 'shallow'"):
        LossSettings(word_map="deep", low_rank=True)


def radzero_logits(regions, text):
    """[(image of the sentence, its similarity to every image)] and its temperature."""
    directions = regions / np.linalg.norm(regions, axis=-1, keepdims=True)
    found = []
    for i, count in enumerate(SENTENCES):
        for t in range(1, count):
            sentence = np.asarray(text.sentences[i, t])
            cosines = directions @ (sentence / np.linalg.norm(sentence))
            weights = softmax(cosines / 0.07, axis=1)
            found.append((i, [cosine(sentence, weights[b] @ directions[b]) / 0.07 for b in range(len(regions))]))
    return found


def mp_nce(sentences, masked=None):
    """Column and row loss of each sentence, by plain loops."""
    losses = []
    for image, logits in sentences:
        seen = [b for b in range(len(logits)) if b == image or masked is None or not masked[image, b]]
        others = [other[image] for j, other in sentences if j != image and (masked is None or not masked[image, j])]
        column = np.log(np.exp([logits[image], *others]).sum()) - logits[image]
        losses.append((column, np.log(np.exp([logits[b] for b in seen]).sum()) - logits[image]))
    return np.array(losses)


@pytest.mark.parametrize("implementation", ["definition", "tiled"])
def test_radzero_has_the_published_similarity_and_the_mp_nce_loss(implementation):
    image, text, regions = case()
    expected = mp_nce(radzero_logits(regions, text)).mean(axis=0)
    found = losses_of(radzero, image, text, implementation=implementation)
    assert found.levels.keys() == {"sentence"}
    np.testing.assert_allclose(found.image_to_text["sentence"], expected[0], rtol=1e-12)
    np.testing.assert_allclose(found.text_to_image["sentence"], expected[1], rtol=1e-12)
    np.testing.assert_allclose(found.total, expected.mean(), rtol=1e-12)


@pytest.mark.parametrize("pooling", ["similarity", "logsumexp"])
def test_units_told_from_images_and_units_in_chunks_have_the_gradients_of_the_definition(pooling):
    """With weights, one of them 0, and a pair that is left out."""
    image, text, _ = case()
    text = text.replace(sentence_count=jnp.asarray([3, 2, 4, 0, 5, 2]))
    weights = jnp.asarray([1.0, 0.0, 0.5, 2.0, 1.0, 3.0])

    def losses(implementation):
        settings = LossSettings.read(
            {**plain(radzero.get_config().loss), "region_pooling": pooling, "implementation": implementation}
        )

        def total(deep, sentences):
            levels = image.replace(deep=deep), text.replace(sentences=sentences)
            found = contrastive_losses(*levels, settings, weights)
            return found.total, found

        return jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(image.deep, text.sentences)

    (_, found), gradients = losses("tiled")
    (_, expected), expected_gradients = losses("definition")
    assert_all_close(found, expected, rtol=1e-12)
    assert_all_close(gradients, expected_gradients, rtol=0, atol=1e-11)
    assert found.image_to_text["sentence"] > 0
    assert np.any(np.asarray(gradients[1][1]) != 0), "the units of a pair of weight 0 are negatives"


def test_settings_of_radzero_that_do_not_go_together_are_named():
    with pytest.raises(UsageError, match=r"'similarity': .* needs loss\.contrast_unit = 'unit'"):
        LossSettings(region_pooling="similarity")
    with pytest.raises(UsageError, match=r"'both': needs loss\.twins = 'negative' or 'mask', not 'share'"):
        LossSettings(region_pooling="similarity", contrast_unit="unit", unit_negatives="both", twins="share")
