"""What it takes to add a backbone of a new family: its own file and one row of the table, nothing else."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.models import build, initial_variables, trainable
from afloc_jax.models.backbone import Backbone, Family, Features, Structure
from afloc_jax.models.convolution import Layers
from afloc_jax.models.settings import BACKBONES, ModelSettings
from afloc_jax.settings import POSITIVE, setting
from afloc_jax.weights.architecture import image_backbone
from afloc_jax.weights.torch_names import from_torch, table, to_torch


@dataclass(frozen=True)
class PatchStructure(Structure):
    width: int = setting(4, POSITIVE)

    def fingerprint(self):
        return f"width {self.width}"


class PatchNet(nn.Module):
    """Two convolutions, a normalisation after each."""

    structure: PatchStructure
    layers: Layers

    @nn.compact
    def __call__(self, x, *, train=False):
        maps = []
        for number in (1, 2):
            x = self.layers.convolution(number * self.structure.width, 3, 4, name=f"patch{number}")(x)
            x = self.layers.norm(name=f"norm{number}")(x, train=train)
            maps.append(x)
        return Features(*maps, x.mean(axis=(1, 2)))


def fingerprint(shapes):
    return f"width {shapes['patches.patch1.weight'][0]}" if "patches.patch1.weight" in shapes else ""


PATCHES = Family("patches", PatchNet, ((r"(patch\d|norm\d)", r"patches.\1"),), fingerprint)


@pytest.fixture
def config(monkeypatch, tiny_config):
    monkeypatch.setitem(BACKBONES, "patches", Backbone(PATCHES, PatchStructure(), options=("width",)))
    tiny_config.image.backbone = "patches"
    tiny_config.image.options = {}
    return tiny_config


def test_it_is_built_with_its_options_and_refuses_others(config):
    config.image.options = {"width": 6}
    shapes = jax.eval_shape(lambda: initial_variables(build(ModelSettings.read(config)), jax.random.key(0)))["params"][
        "image_encoder"
    ]
    assert shapes["backbone"]["patch2"]["kernel"].shape == (3, 3, 6, 12)
    assert shapes["project_deep"]["kernel"].shape == (12, 8)
    for options, message in (({"depth": 2}, "options.depth: unknown key"), ({"width": 0}, "must be greater than 0")):
        config.image.options = options
        with pytest.raises(UsageError, match=message):
            build(ModelSettings.read(config))


def test_its_weights_come_back_from_their_pytorch_names_and_are_recognised(config):
    variables = jax.jit(lambda: initial_variables(build(ModelSettings.read(config)), jax.random.key(0)))()
    state = to_torch(variables, ModelSettings.read(config))
    assert state["img_encoder.model.patches.patch1.weight"].shape == (4, 1, 3, 3)
    jax.tree.map(
        np.testing.assert_array_equal, from_torch(state, ModelSettings.read(config)), jax.device_get(variables)
    )
    assert image_backbone({row.name: row.shape for row in table(ModelSettings.read(config))}).name == "patches"


def test_a_training_step_lowers_its_loss(config, tokens):
    model = build(ModelSettings.read(config))
    variables = jax.jit(lambda: initial_variables(model, jax.random.key(0)))()
    image = np.random.default_rng(0).integers(0, 256, (2, 32, 32), dtype=np.uint8)

    @jax.jit
    def step(params):
        def loss(params):
            state = {**variables, "params": params}
            rngs = {"dropout": jax.random.key(1)}
            levels, updates = model.apply(state, image, tokens, train=True, mutable=["batch_stats"], rngs=rngs)
            return contrastive_losses(*levels, LossSettings()).total, updates["batch_stats"]

        (total, updated), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        trains = trainable(params, model.settings)
        stepped = jax.tree.map(lambda leaf, d, train: leaf - 0.01 * d * train, params, gradient, trains)
        return total, stepped, updated

    before, params, statistics = step(variables["params"])
    after, _, _ = step(params)
    assert after < before
    moved = statistics["image_encoder"]["backbone"]["norm1"]["mean"]
    assert np.abs(moved).min() > 0
