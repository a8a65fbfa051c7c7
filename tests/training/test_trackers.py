"""Weights & Biases and MLflow as trackers, both on this machine alone.

Needs requirements-wandb.txt and requirements-mlflow.txt; without them the tests of the two skip.
"""

import importlib.util
import math
import struct
import time

import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path
from afloc_jax.training import metrics
from afloc_jax.training.metrics import ALWAYS, WRITERS, Writers
from afloc_jax.training.settings import TRACKERS, TrainingSettings
from afloc_jax.training.trackers import check_installed
from afloc_jax.training.writer import Resumed

CONFIG = {"optimizer.lr": 1e-3, "data.dataset": "phantom", **{f"key.{number}": number for number in range(150)}}


def missing(name):
    return pytest.mark.skipif(
        importlib.util.find_spec(name) is None,
        reason=f"SKIPPED: {name} is not installed; pip install -r requirements-{name}.txt",
    )


def write(workdir, tracker, steps, resumed=0):
    """Writes a line of every step, as a run that resumes after `resumed`."""
    given = Resumed(Path(workdir), resumed, resumed, "lr1_seed1", "levels", CONFIG)
    writers = Writers(given, trackers=(tracker,))
    for step in steps:
        writers.write(step, "train", {"loss": 3.0 - step, "loss/report": math.nan if step == 1 else 1.5})
    writers.write(steps[-1], "validation", {"loss": 2.5})
    writers.close()


def read_records(file):
    """The records of a file of wandb, which has LevelDB's log format behind a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, whole = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:
            place += left
            continue
        size, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + size > len(data):
            return  # this part is being written
        whole += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""


def whole_records(file, seconds=60):
    """The records of a file of wandb once its end is there: the process that writes it may lag behind `finish`."""
    until = time.monotonic() + seconds
    while True:
        records = list(read_records(file))
        if any(record.WhichOneof("record_type") == "exit" for record in records):
            return records
        assert time.monotonic() < until, f"{file} has no end after {seconds} s"
        time.sleep(0.1)


@missing("wandb")
def test_wandb_gets_numbers_and_settings_and_goes_on_with_its_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, "wandb", [1, 2, 3])
    write(tmp_path, "wandb", [3, 4], resumed=2)
    files = sorted(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(files) == 2 and len({file.name for file in files}) == 1  # one run, in two parts
    records = [record for file in files for record in whole_records(file)]
    rows = [
        {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        for record in records
        if record.WhichOneof("record_type") == "history"
    ]
    assert [row["train/loss"] for row in rows] == ["2", "1", "0", "0", "-1"]
    assert [row.get("validation/loss") for row in rows] == [None, None, "2.5", None, "2.5"]
    runs = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    assert {(run.display_name, run.run_group, run.project) for run in runs} == {("lr1_seed1", "levels", "afloc_jax")}
    assert any(item.key == "optimizer.lr" for item in runs[0].config.update)
    kinds = {record.WhichOneof("record_type") for record in records}
    assert not kinds & {"output", "output_raw"} and not any(run.git.commit for run in runs)  # no line of a log


@missing("mlflow")
def test_mlflow_gets_numbers_and_settings_in_its_own_store_and_goes_on_with_its_run(tmp_path, monkeypatch):
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write(tmp_path, "mlflow", [1, 2, 3])
    write(tmp_path, "mlflow", [3, 4], resumed=2)
    client = MlflowClient()
    experiment = client.get_experiment_by_name("afloc_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status, run.data.tags["group"]) == ("lr1_seed1", "FINISHED", "levels")
    assert run.data.params["optimizer.lr"] == "0.001" and len(run.data.params) == len(CONFIG)
    values = {(one.step, one.value) for one in client.get_metric_history(run.info.run_id, "train/loss")}
    assert values == {(1, 2.0), (2, 1.0), (3, 0.0), (4, -1.0)}
    assert {one.step for one in client.get_metric_history(run.info.run_id, "train/loss/report")} == {2, 3, 4}
    write(tmp_path, "mlflow", [1])  # from step 0: another run
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_trackers_are_options_and_named_in_one_place():
    assert tuple(WRITERS) == (*ALWAYS, *TRACKERS) and ALWAYS == ("jsonl", "tensorboard")
    assert TrainingSettings(trackers=("mlflow", "wandb")).trackers == ("mlflow", "wandb")
    for wrong in (("comet",), ("wandb", "wandb")):
        with pytest.raises(UsageError, match=r"training.trackers = .*: must be a tuple of some of wandb, mlflow"):
            TrainingSettings(trackers=wrong)


def test_a_tracker_that_is_not_installed_is_refused_with_its_extra(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    check_installed(())
    with pytest.raises(UsageError, match=r'wandb is not installed; pip install "afloc-jax\[wandb\]"'):
        check_installed(("wandb",))


class Failing:
    """A tracker whose server answers the first call alone."""

    def __init__(self, resumed):
        self.calls = 0

    def write(self, step, split, values):
        self.calls += 1
        if self.calls > 1:
            raise ConnectionError("no route to host")

    def close(self):
        raise AssertionError("it gets nothing more")


def test_a_tracker_that_fails_is_left_out_and_said_once(tmp_path, monkeypatch, capsys):
    from afloc_jax.training.trackers import guarded

    monkeypatch.setitem(metrics.WRITERS, "mlflow", guarded("mlflow", Failing))
    write(tmp_path, "mlflow", [1, 2, 3])
    assert capsys.readouterr().err.count("mlflow gets no more numbers of this run (ConnectionError)") == 1
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4


def test_a_tracker_that_cannot_be_opened_is_one_line(tmp_path, monkeypatch):
    from afloc_jax.training.trackers import guarded

    def closed(resumed):
        raise ValueError("no API key\n  configured")

    monkeypatch.setitem(metrics.WRITERS, "wandb", guarded("wandb", closed))
    with pytest.raises(UserError, match=r"^training\.trackers: wandb cannot be opened: no API key configured$"):
        write(tmp_path, "wandb", [1])
