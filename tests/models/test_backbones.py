"""Image backbones against plain PyTorch with the same weights: features, gradients, running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from reference.torch_resnet import PUBLISHED, TorchDenseNet, TorchImageEncoder, TorchResNet, torch_backbone

from afloc_jax.errors import UsageError
from afloc_jax.models import build
from afloc_jax.models.afloc import ImageEncoder
from afloc_jax.models.backbone import Backbone
from afloc_jax.models.convolution import Convolution
from afloc_jax.models.densenet import DENSENET, DenseNetStructure
from afloc_jax.models.normalization import BatchNorm
from afloc_jax.models.resnet import RESNET, ResNetStructure
from afloc_jax.models.settings import BACKBONES, ImageSettings, ModelSettings, TextSettings
from afloc_jax.weights.torch_names import from_torch, table, to_torch

WIDTH, SIDE = 8, 48

# Every kind of block, few and narrow: the structures as published take minutes to compile on a laptop.
NARROW = {"widths": (16, 32, 64, 128), "stem_width": 16}
MINIATURES = {
    "basic": (
        Backbone(RESNET, ResNetStructure(blocks=(1, 2, 1, 1), **NARROW)),
        lambda: TorchResNet((1, 2, 1, 1), False, narrowest=16),
    ),
    "bottleneck": (
        Backbone(RESNET, ResNetStructure(blocks=(1, 2, 1, 1), bottleneck=True, **NARROW)),
        lambda: TorchResNet((1, 2, 1, 1), True, narrowest=16),
    ),
    "grouped": (
        Backbone(RESNET, ResNetStructure((1, 1, 1, 1), bottleneck=True, groups=32, group_width=8, **NARROW)),
        lambda: TorchResNet((1, 1, 1, 1), True, 32, 8, narrowest=16),
    ),
    "dense": (
        Backbone(DENSENET, DenseNetStructure(blocks=(2, 1, 2, 1), growth=12, stem_width=16)),
        lambda: TorchDenseNet((2, 1, 2, 1), 12, 16),
    ),
}


@pytest.fixture(autouse=True)
def miniatures(monkeypatch):
    for name, (backbone, _) in MINIATURES.items():
        monkeypatch.setitem(BACKBONES, name, backbone)


def model_settings(backbone, **options):
    """A model of one image encoder and the smallest possible text encoder."""
    bert = {"vocab_size": 3, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 1}
    bert |= {"intermediate_size": 2, "max_position_embeddings": 3}
    image = ImageSettings(backbone, SIDE, options=options)
    return ModelSettings(projection_dim=WIDTH, image=image, text=TextSettings(bert=bert, last_layers=1))


def encoder_of(settings, dtype=jnp.float32):
    return ImageEncoder(settings.image, settings.image.structure, WIDTH, dtype, jnp.promote_types(dtype, jnp.float32))


def twins(kind, backbone):
    """A PyTorch image encoder with random statistics, and ours with the same values, both float64."""
    torch.manual_seed(0)
    theirs = TorchImageEncoder(backbone, WIDTH).double()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            buffer.normal_(0, 0.1)
    settings = model_settings(kind)
    return theirs, settings, encoder_of(settings, jnp.float64), variables_of(theirs, settings)


def variables_of(theirs, settings):
    """The parameters and statistics of a PyTorch image encoder in our tree."""
    state = {row.name: np.zeros(row.shape) for row in table(settings) if row.name.startswith("text_encoder.")}
    state |= {"img_encoder." + name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    return {kind: tree["image_encoder"] for kind, tree in from_torch(state, settings).items()}


def images(batch=3, seed=0):
    return np.random.default_rng(seed).uniform(-1, 1, (batch, SIDE, SIDE))


def replicated(image):
    return torch.from_numpy(image)[:, None].repeat(1, 3, 1, 1)


def assert_levels_equal(ours, theirs, tolerance):
    for mine, other in zip((ours.shallow, ours.deep, ours.whole), theirs, strict=True):
        other = other.detach().numpy()
        mine = np.asarray(mine) if mine.ndim == 2 else np.moveaxis(np.asarray(mine), -1, 1)
        assert mine.shape == other.shape
        assert np.abs(mine - other).max() <= tolerance * np.abs(other).max()


def largest_difference(found, wanted):
    """Largest difference over the arrays of two trees, each relative to its largest value."""
    compare = jax.tree.map(lambda a, b: np.abs(a - b).max() / max(np.abs(b).max(), 1e-3), found, wanted)
    return max(jax.tree.leaves(compare))


@pytest.mark.parametrize("kind", MINIATURES)
def test_two_training_steps_equal_pytorch(kind):
    """Outputs, parameters after plain gradient descent (so every gradient) and running statistics, in float64."""
    with jax.enable_x64(True):
        theirs, settings, module, variables = twins(kind, MINIATURES[kind][1]())
        theirs.train()

        @jax.jit
        def step(params, statistics, x):
            def loss_fn(params):
                state = {"params": params, "batch_stats": statistics}
                levels, updated = module.apply(state, x, train=True, mutable=["batch_stats"])
                loss = sum((level**2).mean() for level in (levels.shallow, levels.deep, levels.whole))
                return loss, (levels, updated["batch_stats"])

            (_, (levels, updated)), gradient = jax.value_and_grad(loss_fn, has_aux=True)(params)
            return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradient), updated, levels

        params, statistics = variables["params"], variables["batch_stats"]
        for seed in range(2):
            x = images(batch=5, seed=seed)
            params, statistics, levels = step(params, statistics, x)
            theirs.zero_grad()
            expected = theirs(replicated(x))
            assert_levels_equal(levels, expected, 1e-8)
            sum((level**2).mean() for level in expected).backward()
            with torch.no_grad():
                for value in theirs.parameters():
                    value -= 0.1 * value.grad
        found = jax.tree.map(np.asarray, {"params": params, "batch_stats": statistics})
    assert largest_difference(found, variables_of(theirs, settings)) < 1e-8


@pytest.mark.parametrize("kind", MINIATURES)
def test_evaluation_features_equal_pytorch(kind):
    with jax.enable_x64(True):
        theirs, _, module, variables = twins(kind, MINIATURES[kind][1]())
        ours = jax.jit(module.apply)(variables, images())
    assert_levels_equal(ours, theirs.eval()(replicated(images())), 1e-10)
    assert (ours.shallow.shape[1], ours.deep.shape[1]) == (SIDE // 8, SIDE // 16)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", PUBLISHED)
def test_evaluation_features_of_the_published_structures_equal_pytorch(backbone):
    with jax.enable_x64(True):
        theirs, _, module, variables = twins(backbone, torch_backbone(backbone))
        ours = jax.jit(module.apply)(variables, images())
    assert_levels_equal(ours, theirs.eval()(replicated(images())), 1e-9)


SMALLEST = {"blocks": (1, 1), "widths": (4, 4), "strides": (1, 2), "stem_width": 4}


def test_batch_statistics_of_a_sharded_batch_are_global():
    """Eight devices hold two images each; statistics and features are those of the sixteen."""
    if jax.device_count() < 8:
        pytest.skip("SKIPPED: needs eight devices: XLA_FLAGS=--xla_force_host_platform_device_count=8")
    module = encoder_of(model_settings("resnet_small", **SMALLEST))
    x = images(16).astype(np.float32)
    variables = jax.jit(module.init)(jax.random.key(0), x)
    apply = jax.jit(lambda v, x: module.apply(v, x, train=True, mutable=["batch_stats"]))
    alone = apply(variables, x)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    spread = apply(variables, jax.device_put(x, NamedSharding(mesh, PartitionSpec("data"))))
    assert len(spread[0].deep.sharding.device_set) == 8
    for one, other in zip(jax.tree.leaves(alone), jax.tree.leaves(spread), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_running_variance_is_unbiased_and_normalisation_is_not():
    x = np.random.default_rng(0).normal(50, 2, (2, 3, 1, 4)).astype(np.float32)
    norm = BatchNorm()
    variables = norm.init(jax.random.key(0), x, train=True)
    assert not np.asarray(variables["batch_stats"]["mean"]).any()  # making parameters is no training step
    y, updated = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    flat = x.astype(np.float64).reshape(6, 4)
    np.testing.assert_allclose(updated["batch_stats"]["mean"], 0.1 * flat.mean(0), rtol=1e-5)
    np.testing.assert_allclose(updated["batch_stats"]["var"], 0.9 + 0.1 * flat.var(0, ddof=1), rtol=1e-4)
    expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
    np.testing.assert_allclose(np.asarray(y).reshape(6, 4), expected, atol=1e-3)


def test_batch_norm_of_one_value_per_channel_is_finite():
    norm, x = BatchNorm(), np.ones((1, 1, 1, 2), np.float32)
    y, updated = norm.apply(norm.init(jax.random.key(0), x), x, train=True, mutable=["batch_stats"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, updated)))


@pytest.mark.parametrize("size, kernel, stride", [(7, 3, 2), (8, 3, 2), (9, 7, 4), (8, 1, 2), (7, 1, 3), (5, 5, 1)])
def test_convolution_pads_as_pytorch_on_odd_and_even_sides(size, kernel, stride):
    x = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype(np.float32)
    conv = Convolution(4, kernel, stride)
    variables = conv.init(jax.random.key(0), x)
    expected = torch.nn.functional.conv2d(
        torch.from_numpy(np.moveaxis(x, -1, 1).copy()),
        torch.from_numpy(np.array(variables["params"]["kernel"]).transpose(3, 2, 0, 1).copy()),
        stride=stride,
        padding=(kernel - 1) // 2,
    )
    np.testing.assert_allclose(np.moveaxis(conv.apply(variables, x), -1, 1), expected, rtol=1e-4, atol=1e-5)


def test_one_channel_counts_as_replicated_over_the_kernels_three():
    x = np.random.default_rng(0).standard_normal((2, 6, 6, 1)).astype(np.float32)
    conv = Convolution(4, 3, input_channels=3)
    variables = conv.init(jax.random.key(0), x)
    assert variables["params"]["kernel"].shape == (3, 3, 3, 4)
    three = conv.apply(variables, np.repeat(x, 3, axis=-1))
    np.testing.assert_allclose(conv.apply(variables, x), three, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("stem_stride, stem_pool", [(1, False), (2, False), (2, True), (4, False), (4, True)])
def test_small_network_has_the_strides_it_was_asked_for(tiny_config, stem_stride, stem_pool):
    tiny_config.image.input_size = SIDE
    tiny_config.image.options = {
        "widths": (4, 6, 8, 10),
        "blocks": (1, 2, 1, 1),
        "strides": (1, 2, 1, 2),
        "stem_width": 4,
        "stem_stride": stem_stride,
        "stem_pool": stem_pool,
        "shallow_stage": 1,
        "deep_stage": 3,
    }
    module = encoder_of(ModelSettings.read(tiny_config))
    levels, variables = jax.eval_shape(module.init_with_output, jax.random.key(0), jnp.zeros((2, SIDE, SIDE)))
    shallow, deep = SIDE // stem_stride, SIDE // stem_stride // 2
    assert levels.shallow.shape == (2, shallow, shallow, WIDTH)
    assert levels.deep.shape == (2, deep, deep, WIDTH)
    assert variables["params"]["project_shallow"]["kernel"].shape == (4, WIDTH)
    assert variables["params"]["project_deep"]["kernel"].shape == (8, WIDTH)
    assert variables["params"]["project_whole"]["kernel"].shape == (10, WIDTH)


def test_initial_weights_have_the_published_spread():
    structure = ResNetStructure(blocks=(1,) * 4, widths=(16, 32, 256, 512), zero_init_last=True)
    module = encoder_of(model_settings("resnet_small", **structure.plain()))
    params = jax.jit(module.init)(jax.random.key(0), images(1).astype(np.float32))["params"]
    block = params["backbone"]["layer3_0"]
    np.testing.assert_allclose(block["conv2"]["kernel"].std(), np.sqrt(2 / (9 * 256)), rtol=0.01)  # 3x3, 256 -> 256
    assert not np.asarray(block["bn2"]["scale"]).any()
    assert (np.asarray(block["bn1"]["scale"]) == 1).all()
    bound = 1 / np.sqrt(512)
    assert 0.9 * bound < np.abs(params["project_whole"]["kernel"]).max() <= bound


def test_exported_weights_run_alike_in_pytorch():
    """Ours -> state dict -> PyTorch, the direction a user of the exported weights takes."""
    settings = model_settings("basic")
    rng = np.random.default_rng(3)
    state = {row.name: rng.uniform(0.01, 0.1, row.shape).astype(np.float32) for row in table(settings)}
    variables = from_torch(state, settings)
    theirs = TorchImageEncoder(MINIATURES["basic"][1](), WIDTH).eval()
    exported = {
        name.removeprefix("img_encoder."): torch.from_numpy(value)
        for name, value in to_torch(variables, settings).items()
        if name.startswith("img_encoder.")
    }
    theirs.load_state_dict(exported)
    x = images(2).astype(np.float32)
    apply = jax.jit(lambda v, x: build(settings).apply(v, x, method="encode_image"))
    assert_levels_equal(apply(variables, x), theirs(replicated(x)), 1e-5)


@pytest.mark.parametrize("kind", ["basic", "dense"])
def test_statistics_of_groups_are_those_of_batches_of_their_own(kind):
    """Outputs of each group as if it were alone; running statistics are the mean of what each would leave behind."""
    images = np.random.default_rng(0).integers(0, 256, (6, SIDE, SIDE), dtype=np.uint8)

    def encoder(group):
        settings = ImageSettings(kind, SIDE, statistics_group=group, center=True)
        return ImageEncoder(settings, settings.structure, WIDTH)

    variables = jax.jit(encoder(0).init)(jax.random.key(0), images)

    def run(group, images):
        apply = encoder(group).apply
        return jax.jit(lambda *inputs: apply(*inputs, train=True, mutable=["batch_stats"]))(variables, images)

    levels, updates = run(2, images)
    parts = [run(0, images[start : start + 2]) for start in (0, 2, 4)]
    for name in ("shallow", "deep"):
        expected = np.concatenate([getattr(part[0], name) for part in parts])
        np.testing.assert_allclose(getattr(levels, name), expected, rtol=1e-3, atol=1e-3)
        assert np.abs(getattr(run(0, images)[0], name) - expected).max() > 0.1
    expected = jax.tree.map(lambda *leaves: sum(leaves) / 3, *(part[1] for part in parts))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5), updates, expected)
    with pytest.raises(UsageError, match=r"statistics_group = 2: must be 0 .* or a divisor of the batch, 5 images"):
        run(2, images[:5])
