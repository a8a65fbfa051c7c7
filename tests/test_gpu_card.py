"""The batches of the measurements on a GPU are those that a training step takes; the card itself is not needed."""

from argparse import Namespace

import jax
import numpy as np
import pytest

from afloc_jax.training.assembly import assemble
from afloc_jax.training.mesh import build_mesh
from benchmarks import gpu_phantoms
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
