"""Vision transformers against those of Hugging Face Transformers with the same random weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

from afloc_jax.errors import UsageError
from afloc_jax.models import build, trainable
from afloc_jax.models.afloc import ImageEncoder, scaled
from afloc_jax.models.attention import attend
from afloc_jax.models.convolution import Layers
from afloc_jax.models.settings import BACKBONES, ImageSettings, ModelSettings, TextSettings
from afloc_jax.weights.torch_names import from_torch, table

WIDTH, BERT = 8, {"vocab_size": 3, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_channels": 3}
# The name of ours, their model, the options of ours.
KINDS = {
    "dinov2": (
        "dinov2_tiny",
        lambda: Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, patch_size=14, image_size=70)),
        {"position_grid": 5},
    ),
    "registers": (
        "dinov2_tiny",
        lambda: Dinov2WithRegistersModel(
            Dinov2WithRegistersConfig(**SIZES, mlp_ratio=2, patch_size=14, image_size=70, num_register_tokens=3)
        ),
        {"position_grid": 5, "registers": 3},
    ),
    "vit": (
        "vit_tiny",
        lambda: ViTModel(ViTConfig(**SIZES, intermediate_size=128, patch_size=16, image_size=80)),
        {"position_grid": 5},
    ),
}


def settings_of(kind, cells, **changed):
    name, _, options = KINDS[kind]
    patch = BACKBONES[name].structure.patch
    options = {"blocks": 2, "shallow_block": 1, **options, **changed}
    image = ImageSettings(name, patch * cells, options=options)
    bert = {**BERT, "intermediate_size": 2, "max_position_embeddings": 3}
    return ModelSettings(WIDTH, image=image, text=TextSettings(bert, last_layers=1))


@pytest.fixture(scope="module", params=KINDS)
def pair(request, tmp_path_factory):
    """Their model with random values everywhere, and its state dict as it stands in files on the hub."""
    torch.manual_seed(0)
    theirs = KINDS[request.param][1]().eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    folder = tmp_path_factory.mktemp(request.param)
    theirs.save_pretrained(folder)
    return request.param, theirs, load_file(folder / "model.safetensors")


def variables_of(state, settings):
    rows = table(settings)
    own = {f"img_encoder.model.{name}": value for name, value in state.items()}
    filled = {row.name: own.get(row.name, np.zeros(row.shape, np.float32)) for row in rows}
    backbone = [row.name for row in rows if row.name.startswith("img_encoder.model.")]
    assert set(backbone) <= own.keys(), "a parameter of ours has no value among theirs"
    unused = {name.removeprefix("img_encoder.model.") for name in own.keys() - set(backbone)}
    assert unused <= {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
    return from_torch(filled, settings)["params"]["image_encoder"]["backbone"]


def random_params(settings):
    random = np.random.default_rng(0)
    state = {row.name: random.standard_normal(row.shape).astype(np.float32) * 0.1 for row in table(settings)}
    return from_torch(state, settings)["params"]


def features(settings, params, image, dtype=jnp.float32):
    """The features before the projections, of images [B, 3, S, S]."""
    module = BACKBONES[settings.image.backbone].family.module(settings.image.structure, Layers(0, dtype))
    return jax.jit(module.apply)({"params": params}, np.moveaxis(image, 1, -1))


@pytest.mark.parametrize("cells", [5, 7, 3])  # that of the positions, a larger and a smaller one
def test_features_equal_those_of_transformers(pair, cells):
    kind, theirs, state = pair
    settings = settings_of(kind, cells, epsilon=theirs.config.layer_norm_eps)
    side = settings.image.input_size
    image = np.random.default_rng(0).standard_normal((2, 3, side, side)).astype(np.float32)
    ours = features(settings, variables_of(state, settings), image)
    more = {"interpolate_pos_encoding": True} if kind == "vit" else {}
    with torch.inference_mode():
        found = theirs(torch.from_numpy(image), output_hidden_states=True, **more)
        shallow = theirs.layernorm(found.hidden_states[1])
    first = 1 + settings.image.structure.registers
    for mine, tokens in ((ours.deep, found.last_hidden_state), (ours.shallow, shallow)):
        wanted = tokens[:, first:].reshape(2, cells, cells, -1).numpy()
        assert np.abs(mine - wanted).max() <= 1e-5 * np.abs(wanted).max()
    wanted = found.last_hidden_state[:, 0].numpy()
    assert np.abs(ours.whole - wanted).max() <= 1e-5 * np.abs(wanted).max()


def test_the_grid_of_a_published_size_is_37_cells_at_518_pixels():
    settings = ImageSettings("dinov2_base", 518)
    encoder = ImageEncoder(settings, settings.structure, WIDTH, jnp.bfloat16)
    levels, variables = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 518, 518)))
    assert levels.shallow.shape == levels.deep.shape == (1, 37, 37, WIDTH)
    assert variables.keys() == {"params"}
    with torch.device("meta"):
        theirs = Dinov2Model(Dinov2Config(image_size=518, use_mask_token=False))
    count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]["backbone"]))
    assert count == sum(value.numel() for value in theirs.parameters())


@pytest.mark.parametrize("options", [{}, {"train_last": 1}, {"train_last": 2, "shallow_block": 3}, {"train_last": 3}])
def test_blocks_as_a_loop_give_the_same_features_and_gradients(options):
    settings = settings_of("dinov2", 3, blocks=3, **options)
    structure, random = settings.image.structure, np.random.default_rng(1)
    with jax.enable_x64(True):
        params = jax.tree.map(np.float64, random_params(settings)["image_encoder"]["backbone"])
        image = random.standard_normal((2, settings.image.input_size, settings.image.input_size, 3))
        module = BACKBONES[settings.image.backbone].family.module

        def loss(params, remat):
            found = module(structure, Layers(0, jnp.float64, jnp.float64, remat)).apply({"params": params}, image)
            return sum((jnp.sin(each) * (1 + n)).sum() for n, each in enumerate(found)), found

        plain, looped = (
            jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)(params, remat) for remat in (False, True)
        )
        for ours, wanted in zip(jax.tree.leaves(looped), jax.tree.leaves(plain), strict=True):
            np.testing.assert_allclose(ours, wanted, rtol=0, atol=1e-12 * max(1, np.abs(wanted).max()))
        of_first = jax.tree.leaves(looped[0]["block_0"])
    assert any(leaf.any() for leaf in of_first) == (options.get("train_last", 3) == 3)


def test_attention_and_its_gradient_are_those_of_the_plain_formula():
    random = np.random.default_rng(0)
    arrays = [random.standard_normal((2, 5, 3, 4)) for _ in range(4)]

    def plain(query, key, value):
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) / 2
        return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)

    with jax.enable_x64(True):
        found, wanted = (jax.vjp(function, *arrays[:3]) for function in (attend, plain))
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-12)
        for mine, other in zip(found[1](arrays[3]), wanted[1](arrays[3]), strict=True):
            np.testing.assert_allclose(mine, other, atol=1e-12)


def test_bfloat16_stays_near_float32_and_the_whole_may_be_the_mean():
    settings = settings_of("registers", 7, whole="mean")
    params = random_params(settings)["image_encoder"]["backbone"]
    image = np.random.default_rng(0).standard_normal((2, 3, *[settings.image.input_size] * 2)).astype(np.float32)
    full, half = (features(settings, params, image, dtype) for dtype in (jnp.float32, jnp.bfloat16))
    for one, other in zip(full, half, strict=True):
        assert np.abs(one - np.asarray(other, np.float32)).max() <= 0.05 * np.abs(one).max()
    assert half.deep.dtype == jnp.bfloat16 and half.whole.dtype == np.float32
    np.testing.assert_allclose(full.whole, full.deep.mean(axis=(1, 2)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "mean, std", [((0.5,), (0.5,)), ((0.53,), (0.26,)), ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
)
def test_pixels_are_scaled_by_the_mean_and_deviation_that_the_weights_expect(mean, std):
    pixels = np.random.default_rng(0).uniform(size=(2, 4, 4)).astype(np.float32)
    wanted = (pixels[..., None] - np.array(mean)) / np.array(std)
    np.testing.assert_allclose(scaled(jnp.asarray(2 * pixels - 1), mean, std), wanted, atol=1e-5)


@pytest.mark.parametrize(
    "backbone, side, options, message",
    [
        ("dinov2_base", 299, {}, r"input_size = 299: must be a multiple of the patch, 14 pixels; take 294 or 308"),
        ("vit_base", 500, {}, r"take 496 or 512"),
        ("vit_base", 40, {"patch": 64}, r"take 64"),
        ("dinov2_base", 518, {"shallow_block": 13}, r"options.shallow_block = 13: there are 12 blocks"),
        ("dinov2_base", 518, {"heads": 5}, r"width = 768: must be a multiple of heads, 5"),
        ("dinov2_base", 518, {"width": 5}, r"dinov2_base: model.image.options.width: unknown key"),
        ("vit_base", 224, {"registers": 4}, r"vit_base: model.image.options.registers: unknown key"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_would(backbone, side, options, message):
    with pytest.raises(UsageError, match=message):
        ImageSettings(backbone, side, options=options)


@pytest.mark.parametrize("train_last, moved", [(0, {0, 1}), (1, {1})])
def test_the_last_blocks_alone_are_trained(train_last, moved):
    settings = settings_of("dinov2", 3, train_last=train_last, registers=1)
    model = build(settings)
    params = random_params(settings)
    image = np.random.default_rng(0).integers(0, 256, (2, 42, 42), dtype=np.uint8)

    def loss(params):
        levels = model.apply({"params": params}, image, train=True, method="encode_image")
        return sum((level**2).mean() for level in (levels.shallow, levels.deep, levels.whole))

    gradient = jax.jit(jax.grad(loss))(params)["image_encoder"]["backbone"]
    trains = trainable(params, settings)["image_encoder"]["backbone"]
    for name, part in gradient.items():
        block = int(name.removeprefix("block_")) if name.startswith("block_") else None
        wanted = name == "norm" or (not train_last if block is None else block in moved)
        assert set(jax.tree.leaves(trains[name])) == {wanted}, name
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(part)) == wanted, name
