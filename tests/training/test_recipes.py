"""Recipes by name, files of users in their place, and twenty steps of each recipe with tiny towers."""

import dataclasses
import importlib

import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.training import program, recipes
from afloc_jax.training.config import load
from afloc_jax.training.frozen import with_features
from afloc_jax.training.mesh import place_batch
from afloc_jax.training.scales import told
from afloc_jax.training.start import first_variables
from data_pipelines.builders.phantom.generate import generate
from data_pipelines.records import Record
from tests.training.conftest import Records, assembled, changed

# What makes a recipe tiny; everything else is its own.
TINY = {
    "data.max_tokens": 24,
    "model.projection_dim": 16,
    "model.image.input_size": 32,
    "model.text.last_layers": 1,
    "optimizer.lr": 3e-3,
    "training.batch_size": 8,
    "training.steps": 20,
    "training.precision": "float32",
}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"vocab_size": 120, "max_position_embeddings": 32}
VIT = {"model.image.backbone": "dinov2_tiny"}
VIT |= {
    "model.image.options": {"blocks": 2, "shallow_block": 1, "width": 16, "mlp_width": 16, "patch": 8, "train_last": 1}
}
RESNET = {"model.image.backbone": "resnet_small", "model.image.options": {"widths": (4, 8, 8), "stem_width": 4}}
FROZEN = {**VIT, "loss.contrast_group": 0}
FROZEN |= {
    "model.image.options": {key: value for key, value in VIT["model.image.options"].items() if "last" not in key}
}
RECIPES = {  # its tiny tower, and the levels that it contrasts
    "siglip": (RESNET, {"report", "sentence", "word"}),
    "gloria": (RESNET, {"report", "word"}),
    "radzero": (VIT, {"sentence"}),
    "rad_dino": (FROZEN, {"report", "sentence", "word"}),
}


@pytest.mark.parametrize("given", ["demo", "demo.py", "configs/demo.py"])
def test_a_recipe_is_found_by_its_name_from_any_folder(given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert recipes.find(given, "config") == recipes.FOLDER / "demo.py"


def test_a_file_of_the_user_comes_first_and_unknown_names_list_the_recipes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "levels").write_text("")
    assert str(recipes.find("levels", "sweep")) == "levels"
    with pytest.raises(UsageError, match=r"--config=dmo: no such file, .* afloc, demo, .* published, .*vit$"):
        recipes.find("dmo", "config")
    with pytest.raises(UsageError, match="--sweep=resolved: no such file"):
        recipes.find("resolved", "sweep")


def test_a_variant_of_a_recipe_is_loaded_as_train_does():
    path, variant = recipes.find_variant("demo:quick", "config")
    assert load(path, {"optimizer.lr": 1.0}, variant).name == "demo_quick"
    with pytest.raises(UsageError, match="write demo, or demo:quick"):
        load(path, variant="quik")


@pytest.mark.parametrize("call", [["--config=demo", "--sweep=levels"], ["--config", "demo", "--sweep", "levels"]])
def test_a_sweep_by_name_lists_its_runs(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(program, "started_as", lambda *words: None)
    assert main(["sweep", *call, "--workdir=w", "--dry-run"]) == 0
    assert "report+sentence+word" in capsys.readouterr().out
    assert main(["sweep", call[0], "--workdir=w"]) == 2
    assert "--sweep is missing, e.g. --sweep=levels" in capsys.readouterr().err


def test_train_says_its_own_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    former = (program.name(), *program.command())
    try:
        assert main(["train", "--config=demo", "--workdir=w", "--config.optimizer.lr=-1"]) == 2
    finally:
        program.started_as(*former)
    assert capsys.readouterr().err.startswith("afloc train: config.optimizer.lr = -1.0: must be")


@pytest.fixture(scope="module")
def phantoms():
    """Twenty-four phantoms of 224 x 224 pixels with their reports, in memory."""
    made = Records()
    for number in range(24):
        drawn = generate(0, "train", number)
        side, name = len(drawn.image), f"phantom{number}"
        words = drawn.sentences, drawn.impression_count
        made.append(Record(name, drawn.image, *words, name, drawn.view, side, side, []))
    return made


@pytest.mark.parametrize("name", RECIPES)
def test_twenty_steps_of_a_recipe_on_phantoms(name, phantoms, tmp_path):
    """The steps alone; `tests/training/test_train.py` has what a run does around them."""
    tower, levels = RECIPES[name]
    config = importlib.import_module(f"configs.{name}").get_config()
    changed(config, {**TINY, **tower})
    config.data.features = str(tmp_path) if config.model.image.freeze else ""
    config.model.text.bert.update(BERT)
    run, data = assembled(config, source=phantoms)
    state, losses = run.state(first_variables(run.config)), []
    data = with_features(run, dataclasses.replace(data, validation=phantoms), state)
    first = told(state.params)
    batches = data.batches_to_train(run.config)
    for step in range(20):
        state, metrics = run.train_step(state, place_batch(batches.batch_at(step), run.mesh))
        losses.append(metrics.named()["loss"])
    assert sum(losses[-4:]) < sum(losses[:4])
    assert metrics.levels.keys() == levels
    learned = told(state.params)
    assert learned.keys() == first.keys() == (levels if name == "siglip" else set())
    assert all(learned[level]["temperature"] != first[level]["temperature"] for level in learned)
    assert len([*tmp_path.glob("*/deep.bin")]) == (2 if name == "rad_dino" else 0)  # training and validation
