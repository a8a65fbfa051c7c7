"""The losses over a ring of eight devices against definition.py on one, in float64 unless said otherwise."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from cases import assert_all_close, random_levels
from jax.sharding import Mesh
from ring_cases import (
    BATCH,
    SENTENCES,
    WORDS,
    assert_ring_takes_low_rank_features,
    losses_and_gradients,
    low_rank_total,
    with_factors,
)

from afloc_jax.errors import UsageError
from afloc_jax.losses import LossSettings, contrastive_losses, ring
from afloc_jax.losses.ring import Ring
from afloc_jax.training.mesh import batch_sharding, build_mesh

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="SKIPPED: needs eight devices, see tests/conftest.py")


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize("group", [0, 8, 4, 2])
@pytest.mark.parametrize("pooling", ["attention", "logsumexp"])
def test_loss_and_gradients_are_those_of_the_definition(group, pooling):
    """Rings of all devices, of four, of two, and groups that one device holds alone; with weights."""
    image, text = random_levels(BATCH, WORDS, SENTENCES, dtype=np.float64)
    weights = jnp.asarray(np.random.default_rng(5).random(BATCH))
    options = {"contrast_group": group, "region_pooling": pooling, "weights": {"report": 1, "sentence": 0.5, "word": 2}}
    found = losses_and_gradients("ring", image, text, build_mesh(), weights, **options)
    expected = losses_and_gradients("definition", image, text, None, weights, **options)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)


@pytest.mark.usefixtures("float64")
def test_pairs_without_a_caption_are_left_out():
    words, sentences = list(WORDS), list(SENTENCES)
    for empty in (0, 7, 15):
        words[empty] = sentences[empty] = 0
    image, text = random_levels(BATCH, words, sentences, dtype=np.float64)
    found = losses_and_gradients("ring", image, text, build_mesh())
    expected = losses_and_gradients("definition", image, text)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)
    assert float(jnp.abs(found[1][0].shallow[7]).max()) == 0


@pytest.mark.usefixtures("float64")
@pytest.mark.parametrize(("devices", "group"), [(8, 0), (8, 2), (4, 8), (1, 0)])
def test_the_word_level_travels_in_the_width_of_its_factors(devices, group):
    """Rings of eight, of two out of four, and of one device; groups that one device holds alone."""
    assert_ring_takes_low_rank_features(devices, contrast_group=group)


def test_the_word_level_takes_bfloat16_factors():
    image, text = random_levels(BATCH, WORDS, SENTENCES)
    features, kernel = with_factors(image, jnp.bfloat16).shallow_factors
    image = image.replace(shallow_factors=(features, kernel.astype(jnp.float32)))
    loss, gradients = low_rank_total("ring", build_mesh(), image, text)
    assert loss.dtype == jnp.float32
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32, jnp.float32]
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf,
            (image, text),
        )
        expected, expected_gradients = low_rank_total("definition", None, *exact)
        np.testing.assert_allclose(loss, expected, rtol=1e-2)
        for one, other in zip(gradients, expected_gradients, strict=True):
            assert jnp.abs(one.astype(np.float64) - other).max() <= 0.1 * jnp.abs(other).max()


def as_trained_in_bfloat16(image, text):
    """`training.precision = "bfloat16"`: the maps are rounded, text and image vector are float32."""
    return image.replace(shallow=image.shallow.astype(jnp.bfloat16), deep=image.deep.astype(jnp.bfloat16)), text


@pytest.mark.parametrize(
    ("rounding", "of_loss", "of_gradient"),
    [
        pytest.param(lambda *levels: levels, 1e-5, 1e-5, id="float32"),
        pytest.param(as_trained_in_bfloat16, 1e-3, 0.1, id="bfloat16 maps"),
    ],
)
def test_lower_precision_stays_near_the_definition_in_float64(rounding, of_loss, of_gradient):
    """Relative difference of the loss, and of a gradient to its largest value; bfloat16 has eight bits."""
    rounded = rounding(*random_levels(BATCH, WORDS, SENTENCES))
    losses, gradients = losses_and_gradients("ring", *rounded, build_mesh())
    assert losses.total.dtype == jnp.float32
    assert [leaf.dtype for leaf in jax.tree.leaves(gradients)] == [
        leaf.dtype for leaf in jax.tree.leaves(rounded) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    with jax.enable_x64(True):
        exact = jax.tree.map(
            lambda leaf: jnp.asarray(leaf, np.float64) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf, rounded
        )
        expected, expected_gradients = losses_and_gradients("definition", *exact)
        np.testing.assert_allclose(losses.total, expected.total, rtol=of_loss)
        for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected_gradients), strict=True):
            difference = jnp.abs(one.astype(np.float64) - other).max()
            assert difference <= of_gradient * jnp.abs(other).max() + 1e-12


def test_text_travels_and_image_features_stay():
    """What the compiled loss moves between devices: no gathered maps or units, and nothing of the size of a map."""
    image, text = random_levels(BATCH, WORDS, SENTENCES, width=8)
    mesh = build_mesh()
    settings = LossSettings(implementation="ring", weights={"report": 0, "sentence": 0, "word": 1})

    def loss(image, text):
        return contrastive_losses(image, text, settings, mesh=mesh).total

    placed = jax.device_put((image, text), batch_sharding(mesh))
    compiled = jax.jit(jax.grad(loss)).lower(*placed).compile().as_text()
    assert "collective-permute" in compiled
    gathered = re.findall(r"= \w+\[([\d,]*)\][^=]*all-gather(?:-start)?\(", compiled)
    assert all(np.prod([int(size) for size in shape.split(",")]) <= BATCH for shape in gathered)


@pytest.mark.usefixtures("float64")
def test_a_ring_of_tpus_has_few_sends_and_the_numbers_of_the_definition(monkeypatch):
    """Units, norms and whole numbers are a send each; in the backward pass the gradients travel with their likes."""
    rows = ring.local_rows
    monkeypatch.setattr(ring, "local_rows", lambda settings, _: rows(settings, "tpu"))
    image, text = random_levels(BATCH, WORDS, SENTENCES, dtype=np.float64)
    mesh, options = build_mesh(), {"weights": {"report": 0, "sentence": 0, "word": 1}}
    found = losses_and_gradients("ring", image, text, mesh, **options)
    expected = losses_and_gradients("definition", image, text, None, **options)
    assert_all_close(found[0], expected[0], rtol=1e-12)
    assert_all_close(found[1], expected[1], rtol=0, atol=1e-10)

    def loss(words):
        return contrastive_losses(image, text.replace(words=words), LossSettings(**options), mesh=mesh).total

    program = jax.jit(jax.grad(loss)).lower(text.words).as_text()
    # 3 forward, 3 backward, 2 home.
    assert program.count("stablehlo.collective_permute") == 3 + 3 + 2


@pytest.mark.parametrize("low_rank", [False, True])
def test_text_travels_and_is_multiplied_in_the_precision_of_the_maps(low_rank):
    """As trained in bfloat16, where text units arrive in float32; their gradient travels in float32."""
    image, text = as_trained_in_bfloat16(*random_levels(BATCH, WORDS, SENTENCES))
    features, kernel = with_factors(image, np.float32).shallow_factors
    image = image.replace(shallow_factors=(features.astype(jnp.bfloat16), kernel))
    settings = LossSettings(low_rank=low_rank, weights={"report": 0, "sentence": 0, "word": 1})

    def loss(image, words):
        return contrastive_losses(image, text.replace(words=words), settings, mesh=build_mesh()).total

    program = jax.jit(jax.grad(loss, (0, 1))).lower(image, text.words).as_text()
    width, own = (6 if low_rank else 8), BATCH // 8
    units = rf"tensor<1x{own}x{text.words.shape[1]}x{width}x(\w+)>"
    travelling = re.findall(rf"stablehlo\.collective_permute.* -> {units}", program)
    assert sorted(travelling) == ["bf16"] * 2 + ["f32"] * 2, "units both ways; their gradient in the loop and home"
    regions = image.shallow.shape[1] * image.shallow.shape[2]
    # Products of features; sums over the units of a caption are products of the highest precision.
    products = [line for line in program.splitlines() if "stablehlo.dot_general" in line and "HIGHEST" not in line]
    factors = [re.search(r": \((.*)\) -> ", line)[1] for line in products]
    of_tiles = [re.findall(r"x(bf16|f32)>", types) for types in factors if f"x{regions}x" in types]
    assert len(of_tiles) >= 7 and all(types == ["bf16", "bf16"] for types in of_tiles)


def test_auto_is_a_ring_where_there_are_several_devices_and_one_tile_elsewhere():
    image, text = random_levels(BATCH, WORDS, SENTENCES)

    def program(mesh):
        settings = LossSettings()
        return str(jax.make_jaxpr(lambda *inputs: contrastive_losses(*inputs, settings, mesh=mesh).total)(image, text))

    assert "shard_map" in program(build_mesh())
    assert "shard_map" not in program(build_mesh(jax.devices()[:1]))
    assert "shard_map" not in program(None)


def test_what_does_not_fit_the_devices_is_said():
    image, text = random_levels(12, WORDS[:12], SENTENCES[:12])
    with pytest.raises(UsageError, match="12 pairs does not divide over 8 devices"):
        contrastive_losses(image, text, LossSettings(implementation="ring"), mesh=build_mesh())
    with pytest.raises(UsageError, match="contrast_group is 6 but each device holds 4 pairs"):
        Ring.of(Mesh(np.array(jax.devices()[:3]), ("data",)), 12, 6)
    with pytest.raises(UsageError, match="needs the mesh"):
        contrastive_losses(image, text, LossSettings(implementation="ring"))
    with pytest.raises(UsageError, match="contrast_unit = 'caption'"):
        changes = {"contrast_unit": "unit", "region_pooling": "logsumexp"}
        contrastive_losses(image, text, LossSettings(implementation="ring", **changes), mesh=build_mesh())
