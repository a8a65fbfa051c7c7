"""Recipes by name, and files of users in their place."""

import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError
from afloc_jax.training import program, recipes


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
