"""The recipe of a frozen RAD-DINO: what it states at full size."""

from afloc_jax.models.variables import trainable
from afloc_jax.training import recipes
from afloc_jax.training.assembly import assemble
from afloc_jax.training.config import load
from afloc_jax.training.flops import step_flops
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.settings import RunConfig


def test_the_tower_is_frozen_at_full_size_and_the_rest_is_that_of_the_release():
    config, published = (load(recipes.find(name, "config")) for name in ("rad_dino", "published"))
    run = RunConfig.from_config(config)
    assert (run.model.image.backbone, run.model.image.input_size, run.data.image_size) == ("dinov2_base", 518, 518)
    assert config.loss == published.loss and config.optimizer == published.optimizer
    assembled = assemble(run, build_mesh())
    image, _ = assembled.embeddings_like()
    assert image.deep.shape[1:3] == image.shallow.shape[1:3] == (37, 37)
    trained = trainable(assembled.variables_like["params"], run.model)
    towers = trained["image_encoder"], trained["text_encoder"]["bert"]
    assert not any(towers[0]["backbone"]["block_11"]["query"].values()) and all(towers[0]["project_deep"].values())
    assert all(towers[1]["layer_11"]["query"].values())


def test_kept_features_take_the_bytes_and_save_the_operations_that_the_docs_state():
    config, work = load(recipes.find("rad_dino", "config")), []
    for folder in ("", "features"):
        config.data.features = folder
        run = assemble(RunConfig.from_config(config), build_mesh())
        work.append(round(step_flops(run.config, 518).total(128, 128 * 60, 128 * 6) / 1e12))
    assert work == [53, 14]
    like = run.features_like(128).values()
    assert sum(one.size * one.dtype.itemsize for one in like) == 128 * 4_208_640
