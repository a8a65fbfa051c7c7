"""Runs whose image tower is a vision transformer."""

import jax
import numpy as np
import pytest

import launch
from afloc_jax.errors import UsageError
from afloc_jax.training.mesh import place_batch
from afloc_jax.training.replay import build_forward
from afloc_jax.training.settings import RunConfig
from configs import vit
from tests.training.conftest import changed, tiny_config
from tests.training.test_fsdp import prepared, trained

TINY = {
    "model.image.backbone": "dinov2_tiny",
    "model.image.options": {"blocks": 2, "shallow_block": 1, "width": 16, "mlp_width": 16, "patch": 8},
}


def test_the_last_block_alone_is_trained_in_chunks_and_computed_again_in_bfloat16():
    changes = {**TINY, "model.image.options.train_last": 1, "training.micro_batch": 4}
    changes |= {"training.remat": "blocks", "training.precision": "bfloat16"}
    run, state, batches = prepared(1, 1, **changes)
    first = jax.device_get(state.params)["image_encoder"]["backbone"]
    state, metrics = run.train_step(state, place_batch(batches.batch_at(0), run.mesh))
    assert np.isfinite(metrics.named()["loss"])
    for name, part in jax.device_get(state.params)["image_encoder"]["backbone"].items():
        same = jax.tree.map(np.array_equal, part, first[name])
        assert all(jax.tree.leaves(same)) == (name not in ("block_1", "norm")), name


def test_every_layer_is_watched_after_a_loss_that_is_not_finite_also_where_blocks_are_a_loop():
    run, state, batches = prepared(1, 1, **TINY, **{"training.remat": "blocks"})
    batch = place_batch(batches.batch_at(0), run.mesh)
    names: list[str] = []
    finite = jax.jit(build_forward(run, True, names))(state.params, state.batch_stats, batch, jax.random.key(0))
    assert finite.shape[0] == len(names) and finite.all()
    assert {"image_encoder/backbone/block_0", "image_encoder/backbone/block_1/norm2"} <= {*names}


@pytest.mark.slow
def test_split_parameters_give_the_losses_of_whole_ones():
    whole, split = (trained(parts, 2, steps=2, **TINY) for parts in (1, 2))
    np.testing.assert_allclose(split[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(split[1], whole[1], rtol=1e-5)


def test_cells_at_receptive_fields_are_refused_because_patches_are_tiles():
    config = changed(tiny_config(), {**TINY, "localization.cells": "receptive_field"})
    with pytest.raises(UsageError, match=r"the cells of dinov2_tiny are patches.*set localization.cells = 'tiles'"):
        RunConfig.from_config(config)


@pytest.mark.parametrize("backbone", ["dinov2_base", "vit_small"])
def test_the_config_chooses_the_side_that_the_patch_divides(backbone):
    run = RunConfig.from_config(vit.get_config(backbone))
    side = {"dinov2_base": 518, "vit_small": 224}[backbone]
    assert run.model.image.input_size == run.data.builder["image_size"] == side
    with pytest.raises(UsageError, match=r"configs/vit\.py:resnet50: there are dinov2_small"):
        vit.get_config("resnet50")


@pytest.mark.slow
def test_twenty_steps_on_phantoms_by_overrides_alone(tmp_path, capsys):
    overrides = ["--config.model.image.backbone=dinov2_tiny", "--config.model.image.options={}"]
    overrides += ["--config.localization.cells=tiles", f"--config.data.directory={tmp_path / 'data'}"]
    assert launch.main(["launch.py", "--config=demo:quick", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
    assert "finished after 20 steps" in capsys.readouterr().err
