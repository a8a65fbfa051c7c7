"""The two towers: image preparation, options, precision, and what may be trained."""

from functools import partial

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from afloc_jax import models
from afloc_jax.errors import UsageError
from afloc_jax.levels import TokenBatch
from afloc_jax.models import trainable
from afloc_jax.models.afloc import prepare_image
from afloc_jax.models.resnet import upsample
from afloc_jax.models.settings import ModelSettings
from afloc_jax.vectors import unit_norm
from data_pipelines.tokens import learn_tokenizer, tokenize


def build(config, dtype=jnp.float32):
    """The model of a ConfigDict."""
    return models.build(ModelSettings.read(config), dtype)


def pixels(side=32, batch=2):
    return np.random.default_rng(0).integers(0, 256, (batch, side, side), dtype=np.uint8)


def initialised(model, tokens):
    return jax.jit(model.init)(jax.random.key(0), pixels(), tokens)


def both_sides(model, variables, tokens):
    return jax.jit(model.apply)(variables, pixels(), tokens)


@pytest.mark.parametrize("side, target", [(224, 299), (17, 40), (40, 17), (1, 4)])
def test_resize_equals_pytorchs_bilinear_with_aligned_corners(side, target):
    image = np.random.default_rng(0).uniform(-1, 1, (2, side, side))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(image)[:, None], (target, target), mode="bilinear", align_corners=True
    )[:, 0]
    with jax.enable_x64(True):
        ours = prepare_image(jnp.asarray(image), target, jnp.float64)
    np.testing.assert_allclose(ours, expected, atol=1e-12)


def test_pixels_are_scaled_to_minus_one_and_one():
    prepared = prepare_image(np.array([[[0, 255], [51, 204]]], np.uint8), 2)
    np.testing.assert_allclose(prepared, [[[-1, 1], [-0.6, 0.6]]], atol=1e-6)


def test_a_divisor_of_the_side_averages_blocks():
    image = pixels(224)
    expected = np.stack([cv2.resize(one.astype(np.float32), (112, 112), interpolation=cv2.INTER_AREA) for one in image])
    np.testing.assert_allclose(prepare_image(image, 112), expected / 127.5 - 1, atol=1e-5)


@pytest.mark.parametrize(
    "image, message",
    [
        (np.zeros((2, 3, 4), np.uint8), "one-channel squares"),
        (np.zeros((3, 3), np.uint8), "one-channel squares"),
        (np.zeros((2, 3, 3), np.int32), "int32"),
    ],
)
def test_images_of_the_wrong_kind_are_refused(image, message, unchecked):
    with pytest.raises(UsageError, match=message):
        prepare_image(image, 3)


def test_both_sides_have_the_promised_shapes_in_every_precision(tiny_config, tokens):
    for dtype in (jnp.float32, jnp.bfloat16):
        model = build(tiny_config, dtype)
        (image, text), variables = jax.eval_shape(model.init_with_output, jax.random.key(0), pixels(), tokens)
        assert variables.keys() == {"params", "batch_stats"}
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
        assert (image.shallow.shape, image.shallow.dtype) == ((2, 8, 8, 8), dtype)
        assert (image.deep.shape, image.deep.dtype) == ((2, 4, 4, 8), dtype)
        assert (image.whole.shape, image.whole.dtype) == ((2, 8), np.float32)
        assert text.words.shape == text.sentences.shape == (2, 9, 8)
        assert (text.report.shape, text.report.dtype) == ((2, 8), np.float32)


def test_bfloat16_towers_stay_near_float32(tiny_config, tokens):
    model = build(tiny_config)
    variables = initialised(model, tokens)
    full = jax.tree.leaves(both_sides(model, variables, tokens))
    half = jax.tree.leaves(both_sides(build(tiny_config, jnp.bfloat16), variables, tokens))
    for one, other in zip(full, half, strict=True):
        assert np.abs(np.asarray(one, np.float32) - np.asarray(other, np.float32)).max() <= 0.05 * np.abs(one).max()


def test_each_tower_runs_alone(tiny_config, tokens):
    model = build(tiny_config)
    variables = initialised(model, tokens)
    image, text = both_sides(model, variables, tokens)
    alone = (
        jax.jit(partial(model.apply, method="encode_image"))(variables, pixels()),
        jax.jit(partial(model.apply, method="encode_text"))(variables, tokens),
    )
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), alone, (image, text))


def test_normalised_embeddings_are_the_others_divided_by_their_length(tiny_config, tokens):
    """Zero vectors (empty slots; regions that the rectifier silenced) stay zero."""
    variables = initialised(build(tiny_config), tokens)
    plain = both_sides(build(tiny_config), variables, tokens)
    tiny_config.normalize = True
    image, text = unit = both_sides(build(tiny_config), variables, tokens)
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(unit), strict=True):
        if one.ndim > 1:
            length = np.linalg.norm(one, axis=-1, keepdims=True)
            np.testing.assert_allclose(other, one / np.where(length > 0, length, 1), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(image.whole, axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(text.word_count, tokens.word_count)


def test_a_zero_vector_stays_zero_with_a_zero_gradient():
    value, gradient = jax.value_and_grad(lambda x: unit_norm(x).sum())(jnp.zeros(3))
    assert value == 0
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("image, text", [(True, False), (False, True), (False, False)])
def test_frozen_encoders_get_no_gradient_and_keep_their_statistics(tiny_config, tokens, image, text):
    tiny_config.image.freeze, tiny_config.text.freeze = image, text
    model = build(tiny_config)
    variables = initialised(model, tokens)

    def loss_fn(params):
        levels, updated = model.apply(
            variables | {"params": params},
            pixels(),
            tokens,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(1)},
        )
        return sum((leaf.astype(jnp.float32) ** 2).sum() for leaf in jax.tree.leaves(levels)), updated["batch_stats"]

    gradient, statistics = jax.jit(jax.grad(loss_fn, has_aux=True))(variables["params"])
    allowed = trainable(variables["params"], model.settings)
    moved = jax.tree.map(lambda leaf: bool(np.abs(leaf).max() > 0), gradient)
    unused = {("text_encoder", "bert", "pooler", "kernel"), ("text_encoder", "bert", "pooler", "bias")}
    for path, may in jax.tree_util.tree_leaves_with_path(allowed):
        names = tuple(entry.key for entry in path)
        frozen = (image and names[:2] == ("image_encoder", "backbone")) or (text and names[0] == "text_encoder")
        assert may == (not frozen and names not in unused)
    for may, did in zip(jax.tree.leaves(allowed), jax.tree.leaves(moved), strict=True):
        assert may or not did
    assert moved["image_encoder"]["project_deep"]["kernel"]
    before, after = (jax.tree.leaves(tree) for tree in (variables["batch_stats"], statistics))
    unchanged = all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert unchanged == image


@pytest.mark.parametrize(
    "change, message",
    [
        ({"projection": 8}, "model.projection: unknown key; did you mean projection_dim"),
        ({"projection_dim": 16}, "model.projection_dim = 16: model.text.bert.hidden_size is 8"),
        ({"projection_dim": 8.0}, "model.projection_dim = 8.0: must be of type int"),
        ({"normalize": 1}, "model.normalize = 1: must be of type bool"),
        ({"image.backbone": "resnet51"}, "model.image.backbone = 'resnet51': must be one of resnet18"),
        ({"image.input_size": 31}, "model.image.input_size = 31: must be 32 or greater"),
        ({"image.statistics_group": -1}, "model.image.statistics_group = -1: must be 0 or greater"),
        ({"image.options.width": (4,)}, "resnet_small: model.image.options.width: unknown key; did you mean"),
        ({"image.options.widths": (4, 8)}, "model.image.options.widths = .4, 8.: must have 3 values, as blocks"),
        ({"image.options.strides": (1, 0, 2)}, "model.image.options.strides = .1, 0, 2.: must be positive integers"),
        ({"image.options.deep_stage": 4}, "model.image.options.deep_stage = 4: must be a stage; .* from 1 to 3"),
        ({"image.options.top_down": True, "image.options.deep_stage": 3}, "top_down = True: needs a stage after"),
        ({"image.options.drop_context": 1.0}, "model.image.options.drop_context = 1.0: must be at least 0 and below 1"),
        ({"image.options.position": 65}, "model.image.options.position = 65: must be 0 or greater and at most 64"),
        ({"image.options.stem_kernel": 4}, "model.image.options.stem_kernel = 4: must be odd"),
        (
            {"image.options.stem_pool": True, "image.options.stem_stride": 1},
            "model.image.options.stem_stride = 1: must",
        ),
        ({"text.merge_layers": "max"}, "model.text.merge_layers = 'max': must be one of sum, mean"),
        ({"text.last_layers": 4}, "model.text.last_layers = 4: the text encoder has 2 layers"),
        ({"text.bert.num_hidden_layer": 4}, "model.text.bert.num_hidden_layer: unknown key; did you mean"),
        ({"text.bert.num_attention_heads": 3}, "model.text.bert.hidden_size = 8: must be a multiple"),
        ({"text.bert.hidden_act": "swiglu"}, "model.text.bert.hidden_act = 'swiglu': must be one of gelu"),
        ({"text.bert.hidden_dropout_prob": 1.5}, "model.text.bert.hidden_dropout_prob = 1.5"),
        ({"text.bert.position_embedding_type": "relative_key"}, "only 'absolute' is supported"),
    ],
)
def test_a_wrong_key_or_value_is_named(tiny_config, change, message):
    config = tiny_config.to_dict()
    for where, value in change.items():
        *parents, key = where.split(".")
        place = config
        for parent in parents:
            place = place[parent]
        place[key] = value
    with pytest.raises(UsageError, match=message):
        build(config)


def test_a_published_network_takes_no_structure(tiny_config):
    tiny_config.image.backbone = "resnet50"
    with pytest.raises(UsageError, match=r"resnet50: model.image.options.\w+: unknown key"):
        build(tiny_config)


def test_missing_keys_take_the_published_values():
    from configs.afloc import get_config

    assert build({}).settings == build(get_config().model).settings


def test_in_sentence_context_a_sentence_means_the_same_in_a_report_as_alone(tiny_config):
    tiny_config.text.context = "sentence"
    tiny_config.text.bert.max_position_embeddings = 24
    alone = ["small left effusion", "no pneumothorax", "heart size is normal"]
    tokenizer = learn_tokenizer(alone, 30)
    model = build(tiny_config)
    together, separate = (
        TokenBatch(**{key: jnp.asarray(value) for key, value in tokenize(tokenizer, texts, 24).items()})
        for texts in ([". ".join(alone)], alone)
    )
    variables = model.init(jax.random.key(0), jnp.zeros((1, 32, 32)), together)
    report, single = (model.apply(variables, tokens, method="encode_text").sentences for tokens in (together, separate))
    np.testing.assert_allclose(report[0, 1:4], single[:, 1], rtol=1e-4, atol=1e-5)


def test_centred_projections_have_mean_zero_and_variance_one_over_a_batch(tiny_config):
    tiny_config.image.center = True
    model = build(tiny_config)
    slots, count = jnp.zeros((1, 4), jnp.int32), jnp.ones(1, jnp.int32)
    image = pixels(batch=6)
    variables = model.init(jax.random.key(0), image, TokenBatch(slots, slots, slots, count, count))
    levels, _ = model.apply(variables, image, train=True, mutable=["batch_stats"], method="encode_image")
    for features in (levels.shallow, levels.deep, levels.whole):
        flat = features.reshape(-1, features.shape[-1])
        np.testing.assert_allclose(flat.mean(axis=0), 0, atol=1e-5)
        np.testing.assert_allclose(flat.std(axis=0), 1, atol=2e-2)


def test_the_factors_of_the_shallow_map_multiply_to_it_where_it_is_a_plain_projection(tiny_config, tokens):
    model = build(tiny_config)
    variables = initialised(model, tokens)
    with_factors = jax.jit(partial(model.apply, method="encode_image", with_factors=True))(variables, pixels())
    features, kernel = with_factors.shallow_factors
    np.testing.assert_allclose(features @ kernel, with_factors.shallow, rtol=1e-4, atol=1e-5)
    tiny_config.normalize = True
    bent = jax.jit(partial(build(tiny_config).apply, method="encode_image", with_factors=True))(variables, pixels())
    assert bent.shallow_factors is None


def test_upsampling_keeps_every_cell_where_it_is_and_is_linear_between():
    coarse = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
    for side in (7, 8):
        fine = np.asarray(upsample(coarse, side))
        np.testing.assert_allclose(fine[:, ::2, ::2], coarse, rtol=1e-6)
        np.testing.assert_allclose(fine[:, 1, 2], (coarse[:, 0, 1] + coarse[:, 1, 1]) / 2, rtol=1e-5, atol=1e-6)


def test_stages_from_above_start_at_zero_and_widen_what_a_region_sees(tiny_config, tokens):
    plain = build(tiny_config)
    variables = initialised(plain, tokens)
    tiny_config.image.options.top_down = True
    model = build(tiny_config)
    wide = initialised(model, tokens)
    laterals = [name for name in wide["params"]["image_encoder"]["backbone"] if name.startswith("lateral")]
    assert laterals == ["lateral3"]
    encode = jax.jit(partial(model.apply, method="encode_image"))
    np.testing.assert_allclose(
        encode(wide, pixels()).deep, jax.jit(partial(plain.apply, method="encode_image"))(variables, pixels()).deep
    )
    kernel = wide["params"]["image_encoder"]["backbone"]["lateral3"]
    kernel["kernel"] = jnp.ones_like(kernel["kernel"])
    changed = pixels().copy()
    changed[:, -8:, -8:] ^= 255

    def first_region_moves(model, variables):
        near, far = (model.apply(variables, image, method="encode_image").deep for image in (pixels(), changed))
        return bool(np.abs(near - far)[:, 0, 0].max() > 1e-6)

    assert first_region_moves(model, wide) and not first_region_moves(plain, variables)


def test_regions_learn_where_they_lie(tiny_config, tokens):
    """The map of the first stage, to which places are added, shows them as they are."""
    tiny_config.image.options.update(shallow_stage=1, deep_stage=1)
    plain, cells = build(tiny_config), 3
    tiny_config.image.options.position = cells
    tiny_config.image.options.position_start = 0.5
    placed = build(tiny_config)
    variables = initialised(placed, tokens)
    backbone = variables["params"]["image_encoder"]["backbone"]
    table = np.array(backbone["position"]["embedding"])  # row by row from the top left corner
    assert table.shape == (cells**2, table.shape[1]) and 0.3 < table.std() < 0.7

    def features(model, variables):
        _, seen = model.apply(
            variables,
            pixels(),
            method="encode_image",
            capture_intermediates=lambda module, _: module.name == "backbone",
        )
        return jax.tree.map(np.asarray, seen["intermediates"]["image_encoder"]["backbone"]["__call__"][0])

    without = jax.tree.map(jnp.asarray, variables)
    del without["params"]["image_encoder"]["backbone"]["position"]
    found, expected = features(placed, variables), features(plain, without)
    added = found.deep - expected.deep
    np.testing.assert_allclose(added, np.broadcast_to(added[:1], added.shape), atol=1e-5)  # the same in every image
    side = added.shape[1]
    step = -(-side // cells)
    np.testing.assert_allclose(added[0, ::step, ::step].reshape(-1, table.shape[1])[0], table[0], atol=1e-5)
    np.testing.assert_allclose(added[0, 0, step], table[1], atol=1e-5)
    np.testing.assert_allclose(added[0, step, 0], table[cells], atol=1e-5)
    np.testing.assert_allclose(added[0, 0, 1], table[0] + (table[1] - table[0]) / step, atol=1e-5)
    assert np.abs(found.whole - expected.whole).max() > 0.01  # the stages after it read them


def test_dropping_context_leaves_some_images_of_a_batch_without_it(tiny_config, tokens):
    tiny_config.image.options.top_down = True
    tiny_config.image.options.drop_context = 0.5
    model = build(tiny_config)
    wide = initialised(model, tokens)
    kernel = wide["params"]["image_encoder"]["backbone"]["lateral3"]
    kernel["kernel"] = jnp.ones_like(kernel["kernel"])
    same = np.repeat(pixels(batch=1), 16, axis=0)
    deep = model.apply(
        wide, same, train=True, mutable=["batch_stats"], rngs={"dropout": jax.random.key(0)}, method="encode_image"
    )[0].deep
    kinds = np.unique(np.asarray(deep).reshape(16, -1).round(3), axis=0)
    assert len(kinds) == 2
