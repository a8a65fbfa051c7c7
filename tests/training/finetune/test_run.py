"""A transfer as a run: from a model folder on phantoms to a working directory, by the command."""

import json

import pytest

from afloc_jax.cli import launching
from tests.inference.conftest import folder  # noqa: F401 (fixture)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


def run(data, workdir, *more, config="finetune_linear"):
    sizes = [f"--config.data.builder.{key}={value}" for key, value in (("train", 40), ("validation", 24), ("test", 24))]
    flags = [f"--config.data.directory={data}", f"--workdir={workdir}", *sizes, "--config.transfer.bootstrap=20", *more]
    return launching.main(["launch.py", f"--config={config}", *flags])


def test_a_linear_probe_runs_and_says_that_it_is_finished(folder, data, tmp_path, capsys):  # noqa: F811
    given = ("--config.transfer.fractions=(0.5, 1.0)", "--config.transfer.classes=('edema', 'device')")
    assert run(data, tmp_path / "w", f"--config.init_from={folder}", *given) == 0
    summary = json.loads((tmp_path / "w/evaluation/transfer/summary.json").read_text())
    assert set(summary["metrics"]) == {"auc 50pct", "auc 100pct"} and summary["n"] == 24
    assert json.loads((tmp_path / "w/config.json").read_text())["transfer"]["subset_seed"] == 0
    page = (tmp_path / "w/report/index.html").read_text()
    assert "no boxes and no masks" not in page and "AUC, 50 %" in page
    capsys.readouterr()
    assert run(data, tmp_path / "w", f"--config.init_from={folder}", *given) == 0
    assert "already finished" in capsys.readouterr().err
    assert run(data, tmp_path / "w", f"--config.init_from={folder}") == 2
    assert "belongs to another config (transfer.classes: there" in capsys.readouterr().err


def test_wrong_calls_are_one_line(folder, data, tmp_path, capsys):  # noqa: F811
    (tmp_path / "w").mkdir()
    (tmp_path / "w/run.json").write_text('{"weights_sha256": "of another"}')
    for given, status, said in (
        ((), 2, "config.init_from is empty"),
        ((f"--config.init_from={tmp_path / 'none'}",), 1, "no such model folder"),
        ((f"--config.init_from={folder}",), 2, "belongs to another model"),
        ((f"--config.init_from={folder}", "--config.transfer.fraction=1"), 2, "config.transfer.fraction: unknown key"),
        ((f"--config.init_from={folder}", "--sweep=levels"), 2, "--sweep: a transfer"),
    ):
        assert run(data, tmp_path / "w", *given) == status
        [line] = capsys.readouterr().err.strip().splitlines()
        assert said in line
    assert run(data, tmp_path / "new", f"--config.init_from={folder}", "--dry_run") == 0
    assert "finetune_linear: the config is valid" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_fine_tuning_runs_by_its_recipe(folder, data, tmp_path):  # noqa: F811
    given = ("--config.transfer.fractions=(1.0,)", "--config.transfer.classes=('edema', 'device')")
    sizes = [f"--config.training.{key}={value}" for key, value in (("batch_size", 8), ("steps", 2), ("log_every", 1))]
    assert run(data, tmp_path / "w", f"--config.init_from={folder}", *given, *sizes, config="finetune_all") == 0
    summary = json.loads((tmp_path / "w/evaluation/transfer/summary.json").read_text())
    assert summary["encoder"] == "trained" and set(summary["chosen"]) == {"model", "untrained"}
    for name in ("model_100pct", "untrained_100pct"):
        lines = (tmp_path / "w/heads" / name / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == [0, 1, 2, 2]
    assert "the head from the linear probe" in (tmp_path / "w/report/index.html").read_text()


def test_a_probe_of_masks_runs_by_its_recipe(folder, data, tmp_path, capsys):  # noqa: F811
    given = (f"--config.init_from={folder}", "--config.transfer.fractions=(1.0,)")
    given = (*given, "--config.transfer.classes=('pleural effusion',)", "--config.transfer.cells=400")
    assert run(data, tmp_path / "w", *given, config="finetune_segment") == 0
    summary = json.loads((tmp_path / "w/evaluation/transfer/summary.json").read_text())
    assert set(summary["metrics"]) == {"dice 100pct", "iou 100pct"} and summary["target"] == "masks"
    assert "Dice, 100 %" in (tmp_path / "w/report/index.html").read_text()
    capsys.readouterr()
    assert run(data, tmp_path / "x", *given, "--config.encoder=trained", config="finetune_segment") == 2
    assert "masks are learned on a frozen encoder" in capsys.readouterr().err
