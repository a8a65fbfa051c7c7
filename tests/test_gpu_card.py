"""The batches of the measurements on a GPU are those that a training step takes; the card itself is not needed."""

import os
import subprocess
import sys
import zipfile
from argparse import Namespace

import jax
import numpy as np
import pytest

from afloc_jax.training.assembly import assemble
from afloc_jax.training.mesh import build_mesh
from benchmarks import gpu_card, gpu_phantoms
from benchmarks.gpu_sides import configuration, random_batch
from benchmarks.gpu_workers import cut_to


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


def test_stored_batches_of_phantoms_have_what_a_step_takes(config, wanted, tmp_path):
    gpu_phantoms.main([str(tmp_path / "phantoms.npz"), "--pairs", "4", "--batch", "4", "--steps", "1"])
    data = np.load(tmp_path / "phantoms.npz")
    names = [name for name in data.files if name not in ("jpeg", "ends", "index")]
    found = {name: cut_to(config.data.max_tokens, name, data[name][0]) for name in names}
    assert described(found) == {name: form for name, form in wanted.items() if name != "image"}


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
