"""`afloc compile` with the compilers of GPUs and TPUs, which need neither."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from tests.training.compiling import ROOT, compiled

GPU_COMPILER = pytest.mark.skipif(
    not importlib.util.find_spec("jax_cuda13_plugin"), reason='needs the GPU compiler: pip install "jax[cuda13]"'
)
TPU_COMPILER = pytest.mark.skipif(
    not importlib.util.find_spec("libtpu"),
    reason='SKIPPED: no TPU compiler; pip install "jax[tpu]", or name its folder in PYTHONPATH',
)


@GPU_COMPILER
def test_cards_that_are_not_there_get_their_tiles_and_a_count_of_launches():
    command = ("--global_batch", "16", "--set", "loss.low_rank=true", "--part", "loss", "--json")
    one, two = (json.loads(compiled("--topology", topology, *command).stdout) for topology in ("h100:1", "h100:2"))
    assert one["limit_bytes_per_chip"] == int(0.75 * 84942979072) and one["fits"]
    assert one["tiles"]["word"] == {"images": 16, "units": 256, "mean_units": 36, "bins": 3}
    assert two["tiles"]["word"]["images"] == 8
    # Two levels each way around the ring, each a message over the products of a tile, and the gradients' way home.
    assert two["ring_permutes"] == {"total": 5, "asynchronous": 5, "over_products": 5}
    assert one["ring_permutes"] == {"total": 0, "asynchronous": 0, "over_products": 0}
    # Kernels of a tile's two passes, for three and one bins; two steps of the ring.
    assert 100 < one["launches_per_step"] < two["launches_per_step"] < 2 * one["launches_per_step"]


@GPU_COMPILER
@pytest.mark.slow
def test_the_kernels_of_the_loss_compile_for_gpus():
    """Tiled on one card, in a ring on two; a tile has up to eight bins of 128 units."""
    command = ("--global_batch", "16", "--set", "loss.low_rank=true", "--part", "loss", "--json")
    for topology, permutes in (("h100:1", 0), ("h100:2", 4)):
        done = compiled("--topology", topology, *command, "--set", "loss.kernel=triton")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert report["tiles"]["word"]["units"] == 1024 and report["fits"]
        assert report["collectives"].get("collective-permute", 0) >= permutes


@GPU_COMPILER
def test_cards_of_several_hosts_belong_to_as_many_processes():
    code = (
        "from afloc_jax.training.topology import prepare_platform; prepare_platform('h100:2x4');"
        "from afloc_jax.training.ahead_of_time import topology_devices;"
        "print([device.process_index for device in topology_devices('h100:2x4')])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [0] * 4 + [1] * 4


@TPU_COMPILER
@pytest.mark.slow
def test_chips_that_are_not_there_get_their_tiles():
    done = compiled("--topology", "v5e:4x4", "--global_batch", "64", "--part", "loss", "--json")
    assert done.returncode == 0, done.stderr
    tiles = json.loads(done.stdout)["tiles"]
    assert {level: (tile["images"], tile["units"]) for level, tile in tiles.items()} == dict.fromkeys(
        ("word", "sentence"), (4, 512)
    )


@TPU_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(("topology", "batch"), [("v5e:2x2", "32"), ("v5e:4x8", "256")])
def test_a_ring_of_tpus_sends_while_a_tile_is_computed(topology, batch):
    """Units, norms and whole numbers of two levels, both ways; the gradients of units in the loop, and all home.

    More than 16 chips of v5e do so between neighbours alone.
    """
    command = ("--topology", topology, "--global_batch", batch, "--part", "loss", "--json")
    settings = ("--set", "loss.low_rank=true", "--set", "training.precision=bfloat16")
    done = compiled(*command, *settings)
    assert done.returncode == 0, done.stderr
    permutes = 2 * (3 + 4 + 2)
    assert json.loads(done.stdout)["ring_permutes"] == dict.fromkeys(
        ("total", "asynchronous", "over_products"), permutes
    )


@TPU_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize(
    "changes", [("loss.contrast_group=64",), ("model.image.statistics_group=64",), ("training.fsdp=4",)]
)
def test_groups_of_devices_have_shapes_that_v5e_compiles(changes):
    settings = (part for change in changes for part in ("--set", change))
    done = compiled(
        "--topology", "v5e:4x8", "--global_batch", "256", "--json", "--set", "loss.low_rank=true", *settings
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["fits"]


@TPU_COMPILER
@pytest.mark.slow
@pytest.mark.parametrize("topology", ["v5e:4x4", "v5p:4x4x1", "v6e:4x4"])
def test_the_kernels_of_the_loss_compile_for_a_tpu(topology):
    """At full size, forward and backward, word and sentence level, in the ring: four calls."""
    command = [sys.executable, "-m", "afloc_jax", "compile", "--config", "configs/afloc.py", "--part", "loss", "--json"]
    command += ["--set", "loss.kernel=pallas", "--set", "loss.low_rank=true", "--topology", topology]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("XLA_", "JAX_"))}
    done = subprocess.run([*command], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kernels"] == 4 and report["fits"]
    assert report["collectives"]["collective-permute"] > 0
