"""Tiled against the definition: same values and gradients, whatever the shapes, lengths, types and devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import (
    assert_all_close,
    assert_degenerate_features_have_finite_gradients,
    assert_float32_agrees_to_1e_5,
    assert_is_the_definition,
    assert_low_rank_gives_the_projected_loss,
    assert_near_the_float64_definition,
    both,
    contrast_gradients,
    low_rank_case,
    low_rank_similarity,
    random_case,
    random_levels,
    sharp_case,
)
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from afloc_jax.errors import UsageError
from afloc_jax.losses import contrastive_losses, definition, region_pooling, tile_size, tiled
from afloc_jax.losses import tiles as tiles_of_losses
from afloc_jax.losses.low_rank import reduce_rank
from afloc_jax.losses.packing import Captions
from afloc_jax.losses.settings import PUBLISHED, LossSettings

POOLINGS = ["attention", "logsumexp"]


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("pooling", "regions", "units", "width", "counts", "devices"),
    [
        ("attention", 5, 7, 3, [7, 1, 4], 1),
        ("attention", 1, 1, 1, [1], 1),
        ("attention", 9, 97, 16, [97, 20, 41, 96, 8, 9, 33], 8),  # several bins; 8 devices do not divide 7 images
        ("attention", 9, 20, 8, [20] * 6, 2),
        ("logsumexp", 9, 60, 8, [60, 1, 59, 8, 17], 1),
    ],
)
def test_value_and_gradients_are_those_of_the_definition(pooling, regions, units, width, counts, devices):
    case = random_case(len(counts), regions, units, width, counts)
    assert_is_the_definition(case, LossSettings(region_pooling=pooling), devices)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("pooling", "temperature"), [("attention", 4.0), ("attention", 30.0), ("logsumexp", 4.0)])
@pytest.mark.parametrize(("memory", "devices", "images"), [("auto", 1, 14), ("1", 1, 3), ("1", 2, 3), (2, 2, 4)])
def test_tiles_of_several_images_give_the_same(pooling, temperature, memory, devices, images, monkeypatch):
    monkeypatch.setattr(tile_size, "BYTES", 2**20 // (256 * 13 * 3))  # a MiB holds three images
    settings = LossSettings(attention_temperature=temperature, region_pooling=pooling, tile_memory=memory)
    assert tile_size.tile_size(settings, "gpu", 14 // devices, 13, 40).images == images
    case = random_case(14, 13, 40, 8, [40, 1, 17, 8, 9, 33, 2, 3, 25, 40, 16, 7, 12, 5])
    assert_is_the_definition(case, settings, devices, "gpu")


@pytest.mark.parametrize(
    ("platform", "images", "word", "sentence"),
    [("cpu", 16, (1, 104), (1, 104)), ("gpu", 128, (128, 256), (128, 256)), ("tpu", 64, (4, 512), (16, 512))],
)
def test_a_tile_of_the_published_sizes_suits_the_device(platform, images, word, sentence):
    """Captions of 97 slots, of which a bin holds at least one; as many images as the memory allows."""
    for regions, expected in ((1444, word), (361, sentence)):
        size = tile_size.tile_size(PUBLISHED, platform, images, regions, 97)
        assert (size.images, size.units) == expected


def test_float32_agrees_to_1e_5():
    assert_float32_agrees_to_1e_5(random_case(5, 30, 20, 16, [20, 3, 11, 1, 8], np.float32))


@pytest.mark.parametrize("of_text", [jnp.bfloat16, np.float32])
def test_bfloat16_features_keep_float32_losses(of_text):
    regions, units, counts = random_case(5, 30, 20, 16, [20, 3, 11, 1, 8], np.float32)
    regions, units = regions.astype(jnp.bfloat16), units.astype(of_text)
    parts, gradients = contrast_gradients(lambda r, u: tiled.local_similarity(r, u, counts), regions, units)
    assert {part.dtype for part in parts} == {jnp.dtype("float32")}
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, of_text]
    wide = regions.astype(jnp.float32), units.astype(jnp.float32)
    expected, expected_gradients = contrast_gradients(lambda r, u: tiled.local_similarity(r, u, counts), *wide)
    assert_all_close(parts, expected, rtol=0.02)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert np.abs(gradient.astype(jnp.float32) - exact).max() < 0.03 * np.abs(exact).max()


@pytest.mark.parametrize("temperature", [100.0, 1000.0])
def test_sharp_attention_neither_overflows_nor_vanishes(temperature):
    settings = LossSettings(attention_temperature=temperature)
    assert_near_the_float64_definition(sharp_case(), settings, 1e-7 * temperature, 1e-5 * temperature)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_large_features_do_not_overflow(pooling):
    regions, units, counts = random_case(3, 6, 9, 8, [9, 2, 5], np.float32)
    case = 100 * regions, 100 * units, counts  # products of regions and units around 1e5: exp of them is not finite
    (parts, gradients), (expected, _) = both(case, LossSettings(region_pooling=pooling))
    assert_all_close(parts, expected, rtol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pooling", POOLINGS)
def test_degenerate_features_have_the_definitions_finite_gradients(pooling):
    assert_degenerate_features_have_finite_gradients(LossSettings(region_pooling=pooling))


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_clamp_of_the_cosine_has_the_definitions_gradient(monkeypatch, pooling):
    for module in (definition, region_pooling):  # a clamp that ordinary features meet, about half of them
        monkeypatch.setattr(module, "SMALLEST_NORM_PRODUCT", {"attention": 3.0, "logsumexp": 4.0}[pooling])
    case = random_case(3, 6, 9, 4, [9, 2, 5])
    (parts, gradients), (expected, expected_gradients) = both(case, LossSettings(region_pooling=pooling))
    assert_all_close(parts, expected, rtol=1e-12)
    assert_all_close(gradients, expected_gradients, atol=1e-10)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(
    ("pooling", "regions", "features", "width", "counts", "devices"),
    [
        ("attention", 6, 5, 8, [[9, 1, 4, 7]], 1),
        ("attention", 1, 1, 1, [[1]], 1),
        ("attention", 7, 3, 3, [[33, 97, 20], [96, 8, 41]], 8),  # two groups at once, several bins, as wide as before
        ("attention", 5, 4, 7, [[3, 2, 1, 5], [1, 1, 8, 2], [4, 6, 2, 3]], 2),  # two images at once, three groups
        ("logsumexp", 6, 5, 8, [[9, 1, 4, 7]], 1),
    ],
)
def test_low_rank_features_give_the_loss_of_projected_ones(pooling, regions, features, width, counts, devices):
    case = low_rank_case(counts, regions, features, width)
    assert_low_rank_gives_the_projected_loss(case, LossSettings(region_pooling=pooling), devices)


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("small", [0.05, 1e-3, 1e-9, 1e-40, 0.0])
def test_rows_of_the_projection_that_have_shrunk_to_nothing_keep_exact_gradients(small):
    """Weight decay does this to features that are always 0; a zero row is taken as one of 1e-12 of the longest."""
    features, kernel, units, counts = low_rank_case([[9, 1, 4, 7]], 6, 5, 8)
    case = features, kernel * jnp.array([1, small, 1, small / 7, 1])[:, None], units, counts
    assert_low_rank_gives_the_projected_loss(case, PUBLISHED, rtol=1e-11)


def test_a_kernel_without_small_rows_is_decomposed_as_it_is():
    kernel = jax.random.normal(jax.random.key(0), (5, 8))
    projection, _, _ = reduce_rank(kernel, jnp.ones((1, 3, 8)))
    np.testing.assert_array_equal(projection, jnp.linalg.qr(kernel.T)[1].T)


def test_a_projection_that_narrows_is_refused():
    with pytest.raises(UsageError, match="5 features and is projected to 3"):
        reduce_rank(jnp.ones((5, 3)), jnp.ones((4, 9, 3)))


def test_low_rank_bfloat16_features_keep_float32_losses_and_parameters():
    features, kernel, units, counts = low_rank_case([[20, 3, 11, 1, 8]], 30, 12, 16, jnp.bfloat16)
    inputs = features, kernel.astype(jnp.float32), units
    parts, gradients = contrast_gradients(low_rank_similarity(counts, PUBLISHED), *inputs)
    assert {part.dtype for part in parts} == {jnp.dtype("float32")}
    assert [gradient.dtype for gradient in gradients] == [array.dtype for array in inputs]
    wide = [array.astype(jnp.float32) for array in inputs]
    expected, expected_gradients = contrast_gradients(low_rank_similarity(counts, PUBLISHED), *wide)
    assert_all_close(parts, expected, rtol=0.02)
    for gradient, exact in zip(gradients, expected_gradients, strict=True):
        assert np.abs(gradient.astype(jnp.float32) - exact).max() < 0.03 * np.abs(exact).max()


def temporary_bytes(function, *inputs):
    """Bytes of temporaries of the compiled gradient with respect to all inputs but the last."""
    gradient = jax.jit(jax.grad(function, tuple(range(len(inputs) - 1))))
    return gradient.lower(*inputs).compile().memory_analysis().temp_size_in_bytes


def like(*shape, dtype=np.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def test_memory_does_not_grow_with_pairs_times_units_times_regions():
    def temporary(batch, kept="0"):
        def loss(regions, units, counts):
            settings = LossSettings(kept_memory=kept)
            return tiled.grouped_similarity(regions, units, counts, settings, devices=1).sum()

        shapes = (1, batch, 400, 16), (1, batch, 40, 16)
        return temporary_bytes(loss, *(like(*shape) for shape in shapes), like(1, batch, dtype=np.int32))

    growth = temporary(32) - temporary(8)
    assert growth < 4 * (32**2 - 8**2) * 40 * 400 / 20, "more than a 20th of one [B, B, T, N] array"
    # Half of 16 bins of 96 units fit into 64 MiB for 32 images; 16 MiB hold three of them for every image.
    assert 32 * 8 <= (temporary(32, "64") - temporary(32)) / (96 * (400 + 16) * 4) < 32 * 8 * 1.05
    assert 32 * 3 <= (temporary(32, "16") - temporary(32)) / (96 * (400 + 16) * 4) < 32 * 3 * 1.05


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("temperature", [4.0, 30.0])
@pytest.mark.parametrize(
    ("platform", "devices", "tiles", "kept"),
    [("cpu", 1, 0.99, 0), ("cpu", 1, 1, 1), ("cpu", 1, 2.5, 2), ("cpu", 2, 50, 4), ("gpu", 1, 1, 1), ("gpu", 2, 50, 2)],
)
def test_tiles_that_are_kept_give_the_same(temperature, platform, devices, tiles, kept, monkeypatch):
    """No tile, some, and all of the 3 in use and more (half of those that the shapes allow for)."""
    monkeypatch.setattr(tile_size, "BYTES", 2**20 // (256 * 13 * 3))  # on "gpu" tiles of 3 images, so 15 with the last
    counts = [40, 1, 17, 8, 9, 33, 2, 3, 25, 40, 16, 7, 12, 5]
    size = tile_size.tile_size(LossSettings(), platform, 14 // devices, 13, 40)
    images = -(-14 // devices // size.images) * size.images
    memory = images * size.units * (13 + -13 % size.multiple + 8) * 8  # of a tile of all images
    monkeypatch.setattr(tiles_of_losses, "kept_memory", lambda settings, platform: int(tiles * memory))
    shapes = Captions(jnp.zeros((1, 14, 40, 8)), jnp.zeros((1, 14, 40)), jnp.zeros((1, 14), int))
    settings = LossSettings(attention_temperature=temperature)
    assert tiles_of_losses.tiles_to_keep(14 // devices, 13, shapes, settings, platform) == kept
    assert_is_the_definition(random_case(14, 13, 40, 8, counts), settings, devices, platform)


@pytest.mark.usefixtures("float64")
def test_what_is_kept_of_all_groups_shares_the_memory(monkeypatch):
    """Two of four groups are computed at once on two devices, so each keeps half of the tiles."""
    asked = []
    rows = tiled.rows_and_kept
    monkeypatch.setattr(tiled, "tiles_to_keep", lambda *_: 3)
    monkeypatch.setattr(tiled, "rows_and_kept", lambda *given: asked.append(given[-1]) or rows(*given))
    regions, units, counts = random_case(20, 6, 40, 4, [40, 3, 17, 8, 9] * 4)
    regions, units, counts = (array.reshape(4, 5, *array.shape[1:]) for array in (regions, units, counts))

    def similarity(of, settings):
        return lambda regions, units: of(regions, units, counts, settings).sum()

    got = jax.grad(similarity(functools.partial(tiled.grouped_similarity, devices=2), PUBLISHED), (0, 1))
    expected = jax.grad(similarity(definition.grouped_similarity, PUBLISHED), (0, 1))
    assert_all_close(got(regions, units), expected(regions, units), atol=1e-10, rtol=0)
    assert asked == [1]


@pytest.mark.parametrize(
    ("settings", "platform", "kept"),
    [
        ({}, "cpu", 8),
        ({"kept_memory": "0"}, "cpu", 0),
        ({"kept_memory": 100}, "cpu", 7),
        ({}, "gpu", 0),
        ({"kept_memory": "100"}, "gpu", 2),
        ({"kept_memory": "512"}, "tpu", 0),
        ({"kept_memory": "512", "region_pooling": "logsumexp"}, "cpu", 0),
        ({"kept_memory": "512", "kernel": "pallas"}, "gpu", 0),
    ],
)
def test_the_memory_of_what_is_kept_is_as_stated(settings, platform, kept):
    """16 published captions and images: a tile of one image is 104 units x (1444 regions + 768 features), float32."""
    shapes = Captions(like(1, 16, 97, 768), like(1, 16, 97), like(1, 16, dtype=np.int32))
    assert tiles_of_losses.tiles_to_keep(16, 1444, shapes, LossSettings(**settings), platform) == kept


def test_projected_regions_never_exist_for_the_whole_batch():
    def temporary(batch):
        def loss(features, kernel, units, counts):
            return low_rank_similarity(counts, LossSettings(kept_memory="0"), devices=1)(features, kernel, units).sum()

        shapes = (1, batch, 400, 64), (64, 64), (1, batch, 8, 64)
        return temporary_bytes(loss, *(like(*shape) for shape in shapes), like(1, batch, dtype=np.int32))

    growth = temporary(32) - temporary(8)
    assert growth < 4 * (32 - 8) * 400 * 64 / 4, "more than a quarter of one [B, N, F] array"


@pytest.mark.parametrize("group", [0, 4])
def test_a_batch_sharded_over_8_devices_gives_the_loss_of_one(group):
    assert jax.device_count() == 8, "tests/conftest.py asks for 8 devices"
    words = np.random.default_rng(0).integers(1, 30, 16).tolist()
    image, text = random_levels(16, words, [1 + n // 5 for n in words])
    settings = LossSettings(weights={"report": 0}, contrast_group=group)

    def loss(regions, units, image, text):
        return contrastive_losses(image.replace(shallow=regions), text.replace(words=units), settings).total

    step = jax.jit(jax.value_and_grad(loss, (0, 1)))
    expected = step(image.shallow, text.words, image, text)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    sharded = jax.device_put((image, text), NamedSharding(mesh, PartitionSpec("data")))
    actual = step(sharded[0].shallow, sharded[1].words, *sharded)
    assert_all_close(actual, expected, rtol=1e-5, atol=1e-5)
