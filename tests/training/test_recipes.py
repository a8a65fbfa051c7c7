"""Recipes by name, files of users in their place, and twenty steps of each recipe with tiny towers."""

import importlib
import json

import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.training import program, recipes
from afloc_jax.training.config import load
from afloc_jax.training.mesh import place_batch
from afloc_jax.training.start import first_variables
from tests.training.conftest import assembled, batches_of, changed, train

# What makes the towers of a recipe tiny, and its data phantoms; everything else is the recipe's own.
TINY = {
    "data.dataset": "phantom",
    "data.builder": {"train": 40, "validation": 8, "test": 8, "seed": 0},
    "data.max_tokens": 24,
    "model.projection_dim": 16,
    "model.image.input_size": 32,
    "model.text.last_layers": 1,
    "optimizer.lr": 3e-3,
    "training.batch_size": 8,
    "training.steps": 20,
    "training.log_every": 1,
    "training.precision": "float32",
    "evaluation.calibrate": False,
}
BERT = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
BERT |= {"vocab_size": 120, "max_position_embeddings": 32}
VIT = {"model.image.backbone": "dinov2_tiny"}
VIT |= {
    "model.image.options": {"blocks": 2, "shallow_block": 1, "width": 16, "mlp_width": 16, "patch": 8, "train_last": 1}
}
RESNET = {"model.image.backbone": "resnet_small", "model.image.options": {"widths": (4, 8, 8), "stem_width": 4}}


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


@pytest.mark.parametrize(("name", "tower"), [("gloria", RESNET), ("radzero", VIT)])
def test_twenty_steps_of_a_recipe_in_memory(name, tower):
    """The steps alone, on the squares of the tiny run."""
    config = importlib.import_module(f"configs.{name}").get_config()
    tiny = {key: value for key, value in TINY.items() if not key.startswith(("data.dataset", "data.builder"))}
    changed(config, {**tiny, **tower, "data.builder": {}})
    config.model.text.bert.update(BERT)
    run, data = assembled(config)
    state, losses = run.state(first_variables(run.config)), []
    batches = batches_of(data.training, run.config, data.tokenizer)
    for step in range(20):
        state, metrics = run.train_step(state, place_batch(batches.batch_at(step), run.mesh))
        losses.append(metrics.named()["loss"])
    assert sum(losses[-4:]) < sum(losses[:4])
    assert metrics.levels.keys() == {"gloria": {"report", "word"}, "radzero": {"sentence"}}[name]


@pytest.mark.parametrize(("name", "tower"), [("siglip", RESNET)])
def test_twenty_steps_of_a_recipe_on_phantoms(name, tower, tmp_path):
    config = importlib.import_module(f"configs.{name}").get_config()
    changed(config, {**TINY, **tower, "data.directory": str(tmp_path / "data")})
    config.model.text.bert.update(BERT)
    assert train(config, tmp_path / "run") == 0
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line and "grad_norm" in line]
    assert len(losses) == 20 and sum(losses[-4:]) < sum(losses[:4])
    card = json.loads((tmp_path / "run" / "model" / "config.json").read_text())["card"]["recipe"]
    assert set(card.get("learned scales", {})) == ({"report", "sentence", "word"} if name == "siglip" else set())
