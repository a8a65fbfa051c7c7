"""Batches for rings of devices, and their losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
from cases import assert_all_close, random_levels

from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.training.mesh import batch_sharding, build_mesh

BATCH = 16
WORDS = [9, 1, 3, 14, 2, 5, 1, 7, 8, 12, 3, 3, 6, 1, 10, 4]
SENTENCES = [4, 1, 2, 3, 2, 2, 1, 3, 1, 4, 2, 2, 1, 1, 3, 2]


def losses_and_gradients(implementation, image, text, mesh=None, sample_weights=None, **changes):
    """`(ContrastiveLosses, gradients of the total)` of a batch that lies over `mesh`."""
    settings = LossSettings(implementation=implementation, **changes)

    def total(image, text):
        losses = contrastive_losses(image, text, settings, sample_weights, mesh)
        return losses.total, losses

    def step(image, text):
        integers = {name: getattr(text, name) for name in ("word_count", "sentence_count", "hashes")}
        floats = text.replace(**dict.fromkeys(integers))

        def loss(image, floats):
            return total(image, floats.replace(**integers))

        (_, losses), gradients = jax.value_and_grad(loss, (0, 1), has_aux=True)(image, floats)
        return losses, gradients

    if mesh is not None:
        image, text = jax.device_put((image, text), batch_sharding(mesh))
    return jax.jit(step)(image, text)


def assert_ring_takes_kernels(kernel, group, empty):
    """float64, against the definition; the `empty` captions are missing."""
    words, sentences = ([0 if pair in empty else count for pair, count in enumerate(of)] for of in (WORDS, SENTENCES))
    image, text = random_levels(BATCH, words, sentences, dtype=np.float64)
    options = {"contrast_group": group, "weights": {"report": 0, "sentence": 0.5, "word": 2}}
    found = losses_and_gradients("ring", image, text, build_mesh(), kernel=kernel, **options)
    expected = losses_and_gradients("definition", image, text, None, **options)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)


def low_rank_total(implementation, mesh, image, text, **changes):
    """Total of a batch whose shallow map comes as its factors, `implementation` "definition" multiplying them, and
    its gradients with respect to features, kernel and words."""

    def total(features, kernel, words):
        levels = image.replace(shallow=features @ kernel, shallow_factors=(features, kernel))
        settings = LossSettings(low_rank=implementation == "ring", implementation=implementation, **changes)
        return contrastive_losses(levels, text.replace(words=words), settings, mesh=mesh).total

    return jax.jit(jax.value_and_grad(total, (0, 1, 2)))(*image.shallow_factors, text.words)


def with_factors(image, dtype):
    rng = np.random.default_rng(1)
    features, kernel = rng.standard_normal((BATCH, 5, 4, 6)), rng.standard_normal((6, 8)) / 6**0.5
    return image.replace(shallow_factors=(jnp.asarray(features, dtype), jnp.asarray(kernel, dtype)))


def assert_ring_takes_low_rank_features(devices, **changes):
    """float64, against the definition on the projected features."""
    image, text = random_levels(BATCH, WORDS, SENTENCES, dtype=np.float64)
    image = with_factors(image, np.float64)
    found = low_rank_total("ring", build_mesh(jax.devices()[:devices]), image, text, **changes)
    changes.pop("kernel", None)
    expected = low_rank_total("definition", None, image, text, **changes)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)
