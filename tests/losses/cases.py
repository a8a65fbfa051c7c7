"""Inputs shared by the loss tests: the published release's numbers, and random batches."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from afloc_jax.levels import ImageLevels, TextLevels
from afloc_jax.losses import definition, packing, tiled
from afloc_jax.losses.definition import contrast
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.settings import PUBLISHED, LossSettings

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


def degenerate_case():
    regions, units, counts = random_case(5, 6, 9, 4, [9, 1, 3, 0, 5])
    regions = regions.at[0].set(0).at[1].set(regions[1, 0]).at[2, 3].set(0)  # black image, flat image, one dead region
    regions = regions.at[4].multiply(1e-6)  # norms below the clamp of the cosine, but not zero
    units = units.at[0, 2].set(0).at[4].set(1).at[2].multiply(1e-4)  # a zero unit, equal units, a faint caption
    return regions, units, counts


def sharp_case():
    """Units that one region alone stands for, and (equal ones) units whose p is small everywhere; float32."""
    regions, units, counts = random_case(4, 150, 30, 8, [30, 2, 9, 1], np.float32)
    return 3 * regions, units.at[0].set(units[0, 0]), counts


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


def both(case, settings=PUBLISHED, devices=1, platform=None):
    """`(parts, gradients)` of the tiled implementation and of the definition."""
    regions, units, counts = case

    def tiles(regions, units):
        groups = regions[None], units[None], counts[None]
        return tiled.grouped_similarity(*groups, settings, devices=devices, platform=platform)[0]

    def formula(regions, units):
        return definition.local_similarity(regions, units, counts, settings)

    return contrast_gradients(tiles, regions, units), contrast_gradients(formula, regions, units)


def assert_is_the_definition(case, settings=PUBLISHED, devices=1, platform=None, rtol=1e-12):
    """Value and gradients of a float64 case."""
    (parts, gradients), (expected, expected_gradients) = both(case, settings, devices, platform)
    assert_all_close(parts, expected, rtol=rtol, atol=1e-12)
    assert_all_close(gradients, expected_gradients, atol=1e-10, rtol=0)
    for caption, count in zip(gradients[1], case[2], strict=True):
        assert not caption[max(count, 1) :].any(), "padding must get no gradient"


def assert_float32_agrees_to_1e_5(case, settings=PUBLISHED, devices=1, platform=None):
    (parts, gradients), (expected, expected_gradients) = both(case, settings, devices, platform)
    assert_all_close(parts, expected, rtol=1e-5)
    assert_all_close(gradients, expected_gradients, atol=1e-5)


def assert_degenerate_features_have_finite_gradients(settings=PUBLISHED, devices=1, platform=None):
    """Those of the definition, in float64."""
    (parts, gradients), (expected, expected_gradients) = both(degenerate_case(), settings, devices, platform)
    assert all(np.isfinite(array).all() for array in (*parts, *gradients))
    assert_all_close(parts, expected, rtol=1e-12)
    assert_all_close(gradients, expected_gradients, rtol=1e-9, atol=1e-9)


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
