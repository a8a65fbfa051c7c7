"""Runs whose working directory lies in a bucket, on a local stand-in for Google Cloud Storage."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import launch
from afloc_jax import buckets
from afloc_jax.errors import UserError
from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.files import Path, bucket_path, read_json
from afloc_jax.training.checkpoints import MANIFEST, Checkpoints
from afloc_jax.training.workdir import read_finished
from afloc_jax.weights.folder import load_model
from configs.resolved import get_config as resolved_config
from data_pipelines.prepared import prepare
from tests.compiler import xla_flags
from tests.training.conftest import train
from tests.training.test_checkpoints import state

ROOT = Path(launch.__file__).parent
PHANTOMS = f"--config={ROOT / 'tests/training/phantom_config.py'}"


@pytest.fixture
def checkpoints(bucket):
    """Two sealed steps in a bucket."""
    found = Checkpoints(bucket_path(bucket), keep_best=2)
    for step in (1, 2):
        found.save(state(step), step, {"step": step}, float(step))
    found.close()
    return found


def test_a_run_in_a_bucket_is_that_on_this_machine_and_starts_another(finished, config, memory, bucket, capsys):
    assert train(config, bucket_path(f"{bucket}/run")) == 0
    here, there = (load_model(f"{run}/model").variables["params"] for run in (finished, f"{bucket}/run"))
    np.testing.assert_equal(there, here)
    lines = [read_metrics(Path(f"{run}/metrics.jsonl")) for run in (finished, f"{bucket}/run")]
    assert [line["loss"] for line in lines[0]] == [line["loss"] for line in lines[1]]
    written = {name.split(".out.")[0] for name in buckets.listing(f"{bucket}/run") if not name.startswith("check")}
    assert {"config.json", "metrics.jsonl", "events", "model/model.safetensors", "report/index.html"} <= written
    assert "running.json" not in buckets.listing(f"{bucket}/run")
    assert train(config, bucket_path(f"{bucket}/run")) == 0
    assert f"{bucket}/run: already finished after 6 steps" in capsys.readouterr().err

    ours, theirs = (resolved_config(f"{run}/config.json").to_dict() for run in (finished, f"{bucket}/run"))
    assert ours == theirs
    config.init_from = f"{bucket}/run/model"
    assert train(config, bucket_path(f"{bucket}/second")) == 0
    finished = read_finished(bucket_path(f"{bucket}/second"))
    assert finished is not None and finished.steps == 6


def test_a_killed_run_goes_on_from_its_last_sealed_checkpoint(bucket, tmp_path):
    """Its records lie in the bucket, too."""
    records = prepare("phantom", tmp_path / "data", builder={"train": 32, "validation": 8, "test": 8, "seed": 0}).folder
    buckets.upload_folder(records, f"{bucket}/data/{records.name}", marker="")
    command = [sys.executable, str(ROOT / "launch.py"), PHANTOMS, f"--workdir={bucket}"]
    command += [f"--config.data.directory={bucket}/data", f"--config.data.cache={tmp_path / 'cache'}"]
    command += [f"--config.training.{key}" for key in ("steps=10", "log_every=1", "checkpoint_every=2")]
    environment = os.environ | {"XLA_FLAGS": xla_flags(1)}
    run = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    sealed = bucket_path(f"{bucket}/checkpoints/2/{MANIFEST}")
    while not sealed.exists() and run.poll() is None:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL
    assert not bucket_path(f"{bucket}/finished.json").exists()

    again = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"{bucket}: going on from step " in again.stderr
    steps = [line["step"] for line in read_metrics(bucket_path(f"{bucket}/metrics.jsonl")) if line["split"] == "train"]
    assert steps == list(range(1, 11))
    finished = read_finished(bucket_path(bucket))
    assert finished is not None and finished.steps == 10


def test_a_step_that_was_not_sealed_or_is_damaged_in_a_bucket_is_not_restored(checkpoints, bucket, capsys):
    largest = next(name for name in buckets.listing(f"{bucket}/2") if name.startswith("state/d/"))
    content = bytearray(Path(f"{bucket}/2/{largest}").read_bytes())
    content[len(content) // 2] ^= 1
    Path(f"{bucket}/2/{largest}").write_bytes(bytes(content))
    restored, progress = checkpoints.restore_last(state(0))
    assert progress == {"step": 1} and float(restored["weights"][0, 0]) == 1.0
    told = f"{bucket}/2 is damaged in {largest}: moved to {bucket}.damaged/2, going back"
    assert told in capsys.readouterr().err
    assert checkpoints.steps() == [1]
    assert Path(f"{bucket}.damaged/2/{largest}").read_bytes() == bytes(content)
    Path(f"{bucket}/1/{MANIFEST}").unlink()
    with pytest.raises(UserError, match="step 2 was saved, but no intact checkpoint is left"):
        checkpoints.restore_last(state(0))
    assert f"was never completed: moved to {bucket}.damaged/1" in capsys.readouterr().err
    checkpoints.close()


def test_checkpoints_are_restored_where_they_are_copied_to(checkpoints, bucket, tmp_path):
    """From a bucket to this machine and back: each manifest says with which hashes it was made."""
    for name, stored in buckets.listing(f"{bucket}/2").items():
        (tmp_path / "here/2" / name).parent.mkdir(parents=True, exist_ok=True)
        buckets.download(f"{bucket}/2/{name}", tmp_path / "here/2" / name, stored)
    here = Checkpoints(tmp_path / "here", keep_best=2)
    assert here.restore_last(state(0))[1] == {"step": 2}
    here.save(state(3), 3, {"step": 3}, None)
    here.close()
    buckets.upload_folder(tmp_path / "here/3", f"{bucket}/3", MANIFEST)
    assert len(read_json(f"{bucket}/3/{MANIFEST}")["files"]["_CHECKPOINT_METADATA"]) == 64  # SHA-256
    assert checkpoints.restore_last(state(0))[1] == {"step": 3}
    checkpoints.close()


@pytest.mark.parametrize(
    ("workdir", "status", "words"),
    [
        ("gs://no-bucket/run", 1, "gs://no-bucket/run: there is no bucket no-bucket; create it, or correct its name"),
        ("gs://forbidden/run", 1, "gs://forbidden/run: may not be read (reader@example.com does not have"),
        ("gs://read-only/run", 1, "gs://read-only/run: may not be written (reader@example.com does not have"),
        ("s3://bucket/run", 2, "--workdir = s3://bucket/run: remote storage is not supported yet"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_one_line(workdir, status, words, bucket, tmp_path, capsys):
    flags = [f"--workdir={workdir}", f"--config.data.directory={tmp_path}"]
    assert launch.main(["launch.py", PHANTOMS, *flags]) == status
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said
