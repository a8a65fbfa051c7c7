"""Inputs shared by the loss tests: the published release's numbers, and random batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.losses import definition, packing, tiled
from afloc_jax.losses.contrast import contrast
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.settings import LossSettings

PUBLISHED_CASES = ["local_small", "local_odd", "local_temps"]


def published_case(losses, case):
    """`(regions [B, N, D], units [B, T, D], counts [B], settings)` of a golden case."""
    regions = losses[f"{case}/C"]
    regions = regions.reshape(*regions.shape[:2], -1).transpose(0, 2, 1)
    units = losses[f"{case}/W"].transpose(0, 2, 1)
    settings = LossSettings(*losses[f"{case}/temps"].tolist())
    return jnp.asarray(regions), jnp.asarray(units), jnp.asarray(losses[f"{case}/lens"]), settings


def random_case(images, regions, units, width, counts, dtype=np.float64, seed=0):
    """`(regions, units, counts)`; what lies beyond a caption's count is large, so that using it would show."""
    rng = np.random.default_rng(seed)
    text = rng.standard_normal((len(counts), units, width))
    text = np.where(np.arange(units)[:, None] < np.array(counts)[:, None, None], text, 100 * text)
    return (
        jnp.asarray(rng.standard_normal((images, regions, width)), dtype),
        jnp.asarray(text, dtype),
        jnp.asarray(counts),
    )


def random_levels(batch, words, sentences, width=8, dtype=np.float32, seed=0):
    """A batch of both towers' outputs, with `words` and `sentences` as unit counts."""
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.asarray(rng.standard_normal((batch, *shape, width)), dtype)

    image = ImageLevels(draw(5, 4), draw(3, 3), draw())
    text = TextLevels(draw(max(words) + 2), draw(max(sentences) + 1), draw(), jnp.array(words), jnp.array(sentences))
    return image, text


def contrast_gradients(similarity, *inputs):
    """`((image to text, text to image), gradients of their sum)` of a similarity function, compiled."""

    def loss(*inputs):
        parts = contrast(similarity(*inputs))
        return sum(parts), parts

    (_, parts), gradients = jax.jit(jax.value_and_grad(loss, tuple(range(len(inputs))), has_aux=True))(*inputs)
    return parts, gradients


def assert_near_the_float64_definition(case, settings, of_loss, of_gradient, platform=None):
    """Tiles of a case as it comes, against the definition in float64 on the same numbers.

    Relative difference of the losses, and of each gradient to its largest value.
    """
    *inputs, counts = case

    def tiles(regions, units):
        given = regions[None], units[None], counts[None]
        return tiled.grouped_similarity(*given, settings, devices=1, platform=platform)[0]

    parts, gradients = contrast_gradients(tiles, *inputs)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(array), np.float64) for array in inputs]
        formula = partial(definition.local_similarity, counts=counts, settings=settings)
        expected, expected_gradients = contrast_gradients(formula, *wide)
        assert_all_close(parts, expected, rtol=of_loss)
        for gradient, other in zip(gradients, expected_gradients, strict=True):
            assert np.abs(np.asarray(gradient, np.float64) - other).max() <= of_gradient * np.abs(other).max()


def assert_all_close(actual, expected, **tolerance):
    """Every leaf of one tree against the other's."""
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(np.asarray(one), np.asarray(other), **tolerance)


def low_rank_case(counts, regions, features, width, dtype=np.float64):
    """`(features [G, B, N, F], kernel [F, D], units [G, B, T, D], counts [G, B])`; `counts` of each of G groups."""
    rng = np.random.default_rng(1)
    groups, images = np.shape(counts)
    shapes = (groups, images, regions, features), (features, width), (groups, images, np.max(counts), width)
    factors, kernel, units = (rng.standard_normal(shape) for shape in shapes)
    kernel /= features**0.5
    return *(jnp.asarray(array, dtype) for array in (factors, kernel, units)), jnp.asarray(counts)


def low_rank_similarity(counts, settings, devices=None):
    """`similarity(features, kernel, units)` in fewer dimensions, for `contrast_gradients`."""

    def similarity(features, kernel, units):
        projection, units, norms = reduce_rank(kernel, units)
        return tiled.grouped_similarity(features, units, counts, settings, norms, projection, devices)

    return similarity


def assert_low_rank_gives_the_projected_loss(case, settings, devices=None, rtol=1e-12):
    """Value and gradients of features, projection and units, against the definition on the projected features."""
    *inputs, counts = case

    def projected(features, kernel, units):
        return definition.grouped_similarity(features @ kernel, units, counts, settings)

    parts, gradients = contrast_gradients(low_rank_similarity(counts, settings, devices), *inputs)
    expected, expected_gradients = contrast_gradients(projected, *inputs)
    assert_all_close(parts, expected, rtol=rtol)
    assert_all_close(gradients, expected_gradients, atol=1e-10)


@partial(jax.jit, static_argnums=(1, 2))
def pack(counts, length, slots):
    """Captions in bins, placed and packed."""
    return packing.pack(counts, length, slots, packing.first_fit(counts, length, slots))


def first_fit_decreasing(counts, slots):
    """The first slot of every caption, placed one by one, and how many slots of each bin are filled."""
    needs = [-(-int(count) // packing.SLOT) for count in counts]
    filled, starts = [], {}
    for caption in sorted(range(len(needs)), key=lambda caption: -needs[caption]):
        fitting = [number for number, taken in enumerate(filled) if taken + needs[caption] <= slots]
        if not fitting:
            filled.append(0)
        chosen = fitting[0] if fitting else len(filled) - 1
        starts[caption] = chosen * slots + filled[chosen]
        filled[chosen] += needs[caption]
    return [starts[caption] for caption in range(len(needs))], filled
