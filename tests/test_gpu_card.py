"""The batches of the measurements on a GPU are those that a training step takes; the card itself is not needed."""

import json
import os
import subprocess
import sys
import zipfile
from argparse import Namespace
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from afloc_jax.training.assembly import assemble
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.step import StepMetrics
from benchmarks import gpu_card, gpu_phantoms, gpu_workers
from benchmarks.gpu_sides import Program, configuration, random_batch


@pytest.fixture(scope="module")
def config():
    return configuration(Namespace(config="configs/afloc.py", set=[], tiny=True), 4)


@pytest.fixture(scope="module")
def wanted(config):
    return described(assemble(config, build_mesh(jax.devices()[:1])).batch_like())


def described(batch):
    return {name: (array.shape, array.dtype) for name, array in batch.items()}


def test_a_batch_of_noise_has_what_a_step_takes(config, wanted):
    batch = random_batch(config)
    assert described(batch) == wanted
    hashed = batch["sentence_hashes"].any(axis=2).sum(axis=1)
    np.testing.assert_array_equal(hashed, np.minimum(batch["sentence_count"], batch["sentence_hashes"].shape[1]))


def test_training_takes_stored_batches_of_phantoms_and_writes_each_loss(wanted, tmp_path, monkeypatch):
    gpu_phantoms.main([str(tmp_path / "phantoms.npz"), "--pairs", "4", "--batch", "4", "--steps", "2"])
    (tmp_path / "weights").touch()
    seen = []

    def step(state, batch):
        seen.append(described(batch))
        loss, norm, rate = np.float32([state, 0.5, 0.25])
        return state + 1, StepMetrics(loss, {"word": np.float32(3)}, {}, norm, rate, True, {})

    monkeypatch.setattr(gpu_workers, "our_program", lambda config: Program(step, lambda weights: 7, dict))
    given = {"config": "configs/afloc.py", "set": [], "tiny": True, "batch": 4, "limit": 60.0, "out": tmp_path}
    paths = {name: tmp_path / file for name, file in (("phantoms", "phantoms.npz"), ("weights", "weights"))}
    *_, result = gpu_workers.train(Namespace(**given, **paths))
    assert seen == [wanted] * 2 and (result["steps"], result["mean_loss_first_20"]) == (2, 7.5)
    lines = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"], line["loss/word"], line["grad_norm"]) for line in lines] == [
        (0, 7, 3, 0.5),
        (1, 8, 3, 0.5),
    ]


def test_training_waits_for_those_before_it_until_little_time_is_left(tmp_path):
    *_, before, train = gpu_card.jobs()
    card = gpu_card.Card(Namespace(minutes=9), tmp_path)
    ready = SimpleNamespace(job=train, ready=True, ended=False, look=lambda: None)
    card.running = [ready]
    assert card.next([before, train]) is None
    card.began -= 60 * 9 - gpu_card.SOON
    assert card.next([before, train]) is ready


def test_wheels_are_there_for_the_processes_that_start(tmp_path, monkeypatch):
    about = {"METADATA": "Metadata-Version: 2.1\nName: carried\nVersion: 1\n", "RECORD": ""}
    about["WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    with zipfile.ZipFile(tmp_path / "carried-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("carried.py", "here = True")
        for name, text in about.items():
            wheel.writestr(f"carried-1.dist-info/{name}", text)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    gpu_card.install(tmp_path, tmp_path / "packages")
    subprocess.run([sys.executable, "-c", "import carried; assert carried.here"], env=os.environ, check=True)
