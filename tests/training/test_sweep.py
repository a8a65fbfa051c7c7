"""Sweeps: which runs, in which order they are taken up, and the table."""

import csv
import re
import sys
from pathlib import Path

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training.sweep import load_runs, run_sweep
from configs.afloc import get_config
from configs.sweeps import levels

# Stands in for launch.py: notes that it was called, then "trains" as its name tells it to.
LAUNCHER = """
import json, pathlib, sys
workdir = pathlib.Path(sys.argv[2].split("=", 1)[1])
config = json.loads(pathlib.Path(sys.argv[1].split(":", 1)[1]).read_text())
with (workdir.parent / "calls").open("a") as file:
    file.write(workdir.name + "\\n")
lr = config["optimizer"]["lr"]
workdir.mkdir(exist_ok=True)
(workdir / "config.json").write_text(json.dumps(config))
if lr == 3.0 and not (workdir.parent / "mended").exists():
    sys.exit(1)
(workdir / "evaluation" / "phantom").mkdir(parents=True)
summary = {"metrics": {"iou": {"overall": {"mean": lr / 10}}, "pointing": {"overall": {"mean": 0.5}}}}
(workdir / "evaluation" / "phantom" / "summary.json").write_text(json.dumps(summary))
facts = {"best_validation_loss": 9 - lr, "steps": 6, "best_step": 3, "evaluation": config["evaluation"]}
(workdir / "finished.json").write_text(json.dumps(facts))
"""

SWEEP = """
def sweep(config):
    for lr in (1.0, 3.0, 2.0):
        yield {"name": f"lr{lr:.0f}", "optimizer.lr": lr, "seed": int(lr)}
"""


def write(path, text):
    path.write_text(text)
    return path


@pytest.fixture
def sweep(tmp_path):
    file = write(tmp_path / "sweep.py", SWEEP)
    launcher = [sys.executable, str(write(tmp_path / "launcher.py", LAUNCHER))]
    return lambda dry_run=False: run_sweep(file, get_config(), tmp_path / "runs", dry_run, launcher)


def rows(tmp_path):
    with (tmp_path / "runs" / "sweep.csv").open() as file:
        return list(csv.DictReader(file))


def calls(tmp_path):
    return (tmp_path / "runs" / "calls").read_text().split()


def test_a_dry_run_prints_the_table_and_touches_nothing(sweep, tmp_path, capsys):
    assert sweep(dry_run=True) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines] == [
        ["run", "optimizer.lr", "seed"], ["lr1", "1.0", "1"], ["lr3", "3.0", "3"], ["lr2", "2.0", "2"],
    ]  # fmt: skip
    assert not (tmp_path / "runs").exists()


def test_a_failed_run_is_reported_the_others_go_on_and_a_rerun_takes_up_only_what_is_missing(sweep, tmp_path, capsys):
    assert sweep() == 1
    assert calls(tmp_path) == ["lr1", "lr3", "lr2"]
    assert "1 of 3 runs failed: lr3" in capsys.readouterr().err
    table = rows(tmp_path)
    assert [row["run"] for row in table] == ["lr2", "lr1", "lr3"]  # by IoU, those without at the end
    assert [row["status"] for row in table] == ["finished", "finished", "failed"]
    assert table[0]["phantom/iou"] == "0.2" and table[0]["optimizer.lr"] == "2.0" and table[0]["seed"] == "2"
    assert table[0]["best_validation_loss"] == "7.0" and table[2]["phantom/iou"] == ""

    (tmp_path / "runs" / "mended").touch()
    assert sweep() == 0
    assert calls(tmp_path) == ["lr1", "lr3", "lr2", "lr3"]
    assert [row["run"] for row in rows(tmp_path)] == ["lr3", "lr2", "lr1"]


def test_the_page_holds_the_table_and_asks_for_nothing_from_elsewhere(sweep, tmp_path):
    sweep()
    page = (tmp_path / "runs" / "sweep.html").read_text()
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", page)
    assert len(cells) == 3 * len(rows(tmp_path)[0])
    assert cells[:2] == ["lr2", "finished"] and 'data-value="0.2"' in page
    assert "http" not in page and "src=" not in page


def test_a_sweep_over_a_changed_config_refuses_the_folders_of_the_old_one(sweep, tmp_path):
    sweep()
    write(tmp_path / "sweep.py", SWEEP.replace("int(lr)", "7"))
    with pytest.raises(UsageError, match=r"belongs to another config \(seed: there 1, now 7\)"):
        sweep()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def sweep(config):\n    yield {'optimizer.lr': -1.0}", "run lr=-1.0: config.optimizer.lr = -1.0: must be"),
        ("def sweep(config):\n    yield {'optimizer.rate': 1.0}", "config.optimizer.rate: unknown key"),
        ("def sweep(config):\n    yield {'name': 'a/b'}", "'a/b' is no folder name"),
        ("def sweep(config):\n    yield {'name': 'a'}\n    yield {'name': 'a'}", "two runs are named 'a'"),
        ("def sweep(config):\n    yield 3", "run 0 is 3"),
        ("def sweep(config):\n    return iter(())", "yields no run"),
        ("def runs(config):\n    yield {}", "it must define sweep(config)"),
        ("def sweep(:", "SyntaxError"),
    ],
)
def test_a_sweep_file_that_cannot_be_used_is_a_wrong_call(tmp_path, text, message):
    with pytest.raises(UsageError) as caught:
        load_runs(write(tmp_path / "sweep.py", text), get_config())
    assert message in str(caught.value) and "--sweep=" in str(caught.value)


def test_the_ablation_has_the_seven_choices_of_levels():
    runs = load_runs(Path(levels.__file__), get_config())
    assert len({run.name for run in runs}) == 7 and runs[0].name == "report+sentence+word"
    chosen = {tuple(run.config.loss.weights.plain().values()) for run in runs}
    assert len(chosen) == 7 and (0.0, 0.0, 0.0) not in chosen
