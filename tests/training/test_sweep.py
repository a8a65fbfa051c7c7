"""Sweeps: which runs, in which order they are taken up, and the table."""

import csv
import os
import re
import signal
import sys

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training import sweep as sweeps
from afloc_jax.training.launchers import Here
from afloc_jax.training.sweep import load_runs, run_sweep
from configs.afloc import get_config
from configs.sweeps import levels

# Stands in for launch.py: notes that it was called, then "trains" as its name tells it to.
# A run that waits for a signal, and leaves a note when it begins and when it is told.
WAITING = """
import pathlib, signal, sys, time
workdir = pathlib.Path(sys.argv[2].split("=", 1)[1])
def stop(*_):
    (workdir.parent / f"{workdir.name}.told").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
(workdir.parent / f"{workdir.name}.ready").touch()
time.sleep(120)
"""

LAUNCHER = """
import json, pathlib, sys, time
workdir = pathlib.Path(sys.argv[2].split("=", 1)[1])
config = json.loads(pathlib.Path(sys.argv[1].split(":", 1)[1]).read_text())
with (workdir.parent / "calls").open("a") as file:
    file.write(workdir.name + "\\n")
lr = config["optimizer"]["lr"]
workdir.mkdir(exist_ok=True)
(workdir / "config.json").write_text(json.dumps(config))
print("training")
while (workdir.parent / "together").exists() and lr == 1.0 and not (workdir.parent / "lr3").exists():
    time.sleep(0.05)
if lr == 3.0 and not (workdir.parent / "mended").exists():
    sys.exit(f"launch.py: no luck with {lr}")
(workdir / "report").mkdir()
(workdir / "report" / "index.html").touch()
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
    command = [sys.executable, str(write(tmp_path / "launcher.py", LAUNCHER))]

    def run(dry_run=False, parallel=1):
        return run_sweep(file, get_config(), Path(tmp_path / "runs"), dry_run, command, Here(parallel, {}))

    return run


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


def test_the_page_leads_to_the_reports_and_asks_for_nothing_from_elsewhere(sweep, tmp_path):
    assert sweep() == 1
    page = (tmp_path / "runs" / "sweep.html").read_text()
    rows_of_settings = re.findall(r'<tr data-setting="(\d)">\s*<th scope="row" class="wraps"><i.*?</i>(\w+)', page)
    assert rows_of_settings == [("0", "lr2"), ("1", "lr1"), ("2", "lr3")]
    assert 'href="lr2/report/index.html"' in page and "lr3/report" not in page
    assert "exit status 1: no luck with 3.0" in page and 'href="lr3.log"' in page
    assert "http" not in page and "src=" not in page


def test_runs_go_on_at_the_same_time_and_their_output_is_in_their_logs(sweep, tmp_path, capsys):
    """The launcher of lr1 waits for the folder of lr3, which is the next to start; lr3 fails, lr2 still comes."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "together").touch()
    assert sweep(parallel=2) == 1
    assert sorted(calls(tmp_path)) == ["lr1", "lr2", "lr3"]
    said = capsys.readouterr().err
    assert "[1/3] lr1: finished" in said and "[2/3] lr3: failed, exit status 1: no luck with 3.0" in said
    assert [row["status"] for row in rows(tmp_path)] == ["finished", "finished", "failed"]
    assert (
        "no luck" in (tmp_path / "runs" / "lr3.log").read_text()
        and "training" in (tmp_path / "runs" / "lr1.log").read_text()
    )


def test_a_signal_stops_all_runs_that_go_on(tmp_path, monkeypatch):
    """Both children wait for a signal, and leave a note when they get it."""
    command = [sys.executable, str(write(tmp_path / "launcher.py", WAITING))]
    file, folder = write(tmp_path / "sweep.py", SWEEP), tmp_path / "runs"
    see = sweeps._Sweep._see

    def seeing(self, stop):
        if len([*folder.glob("*.ready")]) == 2 and not stop.received:
            os.kill(os.getpid(), signal.SIGTERM)
        see(self, stop)

    monkeypatch.setattr(sweeps._Sweep, "_see", seeing)
    status = run_sweep(file, get_config(), Path(folder), False, command, Here(2, {}))
    assert status == 143
    assert sorted(path.stem for path in folder.glob("*.told")) == ["lr1", "lr3"]
    assert [row["status"] for row in rows(tmp_path)] == ["not finished"] * 3


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
