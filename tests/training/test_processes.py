"""The same run on one, two and four processes of one machine, eight devices in all."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from afloc_jax.files import bucket_path
from afloc_jax.training.checkpoints import damage
from afloc_jax.training.mesh import WHOLE_BELOW
from afloc_jax.weights.calibration import read_calibration
from afloc_jax.weights.folder import load_model
from data_pipelines.prepared import prepare
from tests.compiler import xla_flags
from tests.training.phantom_config import get_config

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Prepared phantoms: several processes must not have to wait for each other to draw them."""
    directory = tmp_path_factory.mktemp("data")
    prepare("phantom", directory, builder=get_config().data.builder.to_dict())
    return directory


def launched(
    processes, directory, workdir, *overrides, config=ROOT / "tests/training/phantom_config.py", devices=0, status=0
):
    """The metrics of a run of launch.py on that many processes, each with `devices` or its share of eight."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": xla_flags(devices or 8 // processes),
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, str(ROOT / "launch.py"), f"--config={config}"]
    command += [f"--workdir={workdir}", f"--config.data.directory={directory}", *overrides]
    running = []
    for number in range(processes):
        distributed = [f"--coordinator=localhost:{port}", f"--processes={processes}", f"--process={number}"]
        arguments = command + (["--distributed", *distributed] if processes > 1 else [])
        running.append(subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE, text=True))
    try:
        said = [process.communicate(timeout=500)[1] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [status] * processes, said
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    keys = ("loss", "loss/report", "loss/sentence", "loss/word", "grad_norm")
    return {
        split: np.array([[line[key] for key in keys if key in line] for line in lines if line["split"] == split])
        for split in ("train", "validation")
    }


def compare(counts, directory, tmp_path, *overrides):
    runs = [launched(count, directory, tmp_path / str(count), *overrides) for count in counts]
    assert runs[0]["train"].shape == (4, 5) and len(runs[0]["validation"]) == 1
    for run in runs[1:]:
        for split, expected in runs[0].items():
            np.testing.assert_allclose(run[split], expected, rtol=1e-5)  # rounding, grown over four steps


@pytest.mark.parametrize("place", ["folder", pytest.param("bucket", marks=pytest.mark.slow)])
def test_two_processes_give_the_losses_of_one(place, directory, tmp_path, request):
    """A checkpoint is saved after every step, and committed by both processes at the same later one."""
    workdirs = tmp_path if place == "folder" else bucket_path(request.getfixturevalue("bucket"))
    compare((1, 2), directory, workdirs, "--config.training.checkpoint_every=1", "--config.training.keep_best=1")
    for count in ("1", "2"):
        assert sorted(path.name for path in (workdirs / count / "checkpoints").iterdir()) == ["3", "4"]
        assert not damage(workdirs / count / "checkpoints" / "4")


@pytest.mark.slow
def test_four_processes_give_the_losses_of_one(directory, tmp_path):
    compare((1, 4), directory, tmp_path)


@pytest.mark.slow
def test_a_state_split_over_two_processes_gives_the_losses_of_one(directory, tmp_path):
    """Saved in parts by both, fetched whole for the model folder. 16 x 1,024 weights are just enough to be split."""
    compare((1, 2), directory, tmp_path, "--config.training.fsdp=8", "--config.model.text.bert.intermediate_size=1024")
    one, two = (load_model(tmp_path / count / "model")[1]["params"] for count in ("1", "2"))
    jax.tree.map(lambda leaf, other: np.testing.assert_allclose(leaf, other, atol=1e-3), one, two)
    assert max(leaf.size for leaf in jax.tree.leaves(two)) >= WHOLE_BELOW


SIGNALLED = """
import os, signal
import jax
from afloc_jax.training import loop
from tests.training.phantom_config import get_config as without

def get_config():
    place, count = loop.place_batch, iter(range(1000))

    def placing(batch, mesh):
        if next(count) == {batch} and jax.process_index() == jax.process_count() - 1 and not os.path.exists({once!r}):
            open({once!r}, "x").close()
            os.kill(os.getpid(), signal.{name})
        return place(batch, mesh)

    loop.place_batch = placing
    return without()
"""


@pytest.mark.slow
def test_a_run_whose_processes_change_or_die_gives_the_losses_of_one(directory, tmp_path):
    """Four processes, two, and four again, stopped by a signal to the last; and two of which the last is killed."""

    def signalled(name, batch):
        config, once = tmp_path / f"{len(list(tmp_path.iterdir()))}.py", tmp_path / f"{len(list(tmp_path.iterdir()))}"
        config.write_text(SIGNALLED.format(batch=batch, name=name, once=str(once)))
        return config

    longer = ("--config.training.epochs=2", "--config.training.checkpoint_every=1")
    expected = launched(1, directory, tmp_path / "one", *longer)
    assert len(expected["train"]) == 8
    for processes in (4, 2):
        config = signalled("SIGTERM", 1)
        launched(processes, directory, tmp_path / "changed", *longer, config=config, status=143)
    changed = launched(4, directory, tmp_path / "changed", *longer)
    config = signalled("SIGKILL", 4)
    restarted = launched(2, directory, tmp_path / "killed", *longer, "--max_restarts=1", config=config)
    for run in (changed, restarted):
        for split, values in expected.items():
            np.testing.assert_allclose(run[split], values, rtol=1e-4)  # rounding, grown over eight steps
    finished = [
        json.loads((tmp_path / name / "checkpoints.sealed.json").read_text())["step"] for name in ("changed", "killed")
    ]
    assert finished == [8, 8]


EVALUATED = """
from ml_collections import ConfigDict
from tests.training.phantom_config import get_config as without

def get_config():
    config = without()
    builder = ConfigDict({{**config.data.builder, "test": 40}})
    entry = {{"name": "phantom", "directory": {directory!r}, "builder": builder, "bootstrap": 50}}
    tasks = [{{"task": name}} for name in ("classification", "retrieval", "robustness")]
    first = [{{"task": "counterfactual"}}]  # prompts that a model knows from other batches differ in the last bit
    localizations = [{{}}, {{"protocol": "chexlocalize"}}]
    last = [{{"task": "presence", "title": "presence"}}]
    config.evaluation.datasets = tuple(ConfigDict(entry | more) for more in first + localizations + tasks + last)
    config.evaluation.calibrate = True
    return config
"""


@pytest.mark.slow
def test_an_evaluation_that_two_processes_share_gives_the_numbers_of_one(directory, tmp_path):
    """Every task, on the same trained model, with two batches: 40 images are more than the 32 of one."""
    launched(1, directory, tmp_path / "1")
    shutil.copytree(tmp_path / "1", tmp_path / "2")
    config = tmp_path / "evaluated.py"
    config.write_text(EVALUATED.format(directory=str(directory)))
    for count in (1, 2):
        launched(count, directory, tmp_path / str(count), config=config, devices=1)
    one, two = (tmp_path / count / "evaluation" for count in ("1", "2"))
    names = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert len([name for name in names if name.name == "summary.json"]) == 7
    for name in names:
        assert (two / name).is_file()
        if name.parts[0] == "presence":  # the last bits of a fit depend on the batches in which prompts were read
            continue
        if name.name == "summary.json":
            ours, theirs = (json.loads((folder / name).read_text()) for folder in (one, two))
            assert ours["metrics"] == theirs["metrics"] and ours["n"] == theirs["n"]
        elif name.suffix == ".csv":
            assert (one / name).read_bytes() == (two / name).read_bytes()
    fits = [read_calibration(tmp_path / count / "model").pooled for count in ("1", "2")]
    np.testing.assert_allclose(fits[0].weights, fits[1].weights, rtol=1e-3, atol=1e-4)
    assert (tmp_path / "2/report/index.html").is_file()
