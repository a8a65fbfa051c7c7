"""The compiler's flags that launch.py sets."""

import os
import subprocess
import sys

import pytest

from afloc_jax.training import xla_flags
from afloc_jax.training.topology import prepare_platform
from afloc_jax.training.xla_flags import ACCEPTED_BY, GPU_FLAGS, described, set_flags

SCHEDULER = "--xla_gpu_enable_latency_hiding_scheduler"
ALL = " ".join(GPU_FLAGS)


def flags(environment, jaxlib=ACCEPTED_BY[0]):
    environment = dict(environment)
    set_flags(environment, jaxlib)
    return environment.get("XLA_FLAGS")


@pytest.mark.parametrize("platforms", ["cuda", "gpu", "cuda,cpu"])
def test_gpus_get_the_scheduler_and_one_message_a_hop(platforms):
    one_message = "--xla_gpu_collective_permute_combine_threshold_bytes=1073741824"
    assert flags({"JAX_PLATFORMS": platforms}) == f"{SCHEDULER}=true {one_message}"


def test_flags_of_the_user_win_and_stay():
    assert flags({"JAX_PLATFORMS": "cuda", "XLA_FLAGS": f"{SCHEDULER}=false"}) == f"{SCHEDULER}=false {GPU_FLAGS[1]}"
    assert flags({"JAX_PLATFORMS": "cuda", "XLA_FLAGS": "--xla_a=1  --xla_b"}) == f"--xla_a=1 --xla_b {ALL}"


@pytest.mark.parametrize("platforms", ["cpu", "tpu", "cpu,cuda", "rocm"])
def test_other_platforms_get_none(platforms):
    assert flags({"JAX_PLATFORMS": platforms}) is None
    assert flags({"JAX_PLATFORMS": platforms, "XLA_FLAGS": "--xla_a"}) == "--xla_a"


def test_a_version_that_has_not_been_tried_gets_none():
    assert flags({"JAX_PLATFORMS": "cuda"}, "99.0") is None


def test_without_a_platform_plugin_driver_and_visible_card_decide(monkeypatch, tmp_path):
    monkeypatch.setattr(xla_flags, "_DRIVER", tmp_path / "version")
    monkeypatch.setattr(xla_flags, "GPU_PLUGINS", ("json",))
    assert flags({}) is None  # no driver
    (tmp_path / "version").touch()
    assert flags({}) == ALL
    assert flags({"CUDA_VISIBLE_DEVICES": ""}) is None and flags({"CUDA_VISIBLE_DEVICES": "-1"}) is None
    assert flags({"CUDA_VISIBLE_DEVICES": "0,1"}) == ALL
    monkeypatch.setattr(xla_flags, "GPU_PLUGINS", ("no_such_plugin",))
    assert flags({}) is None


def test_this_jax_accepts_the_flags_and_would_end_at_others():
    def status(given):
        environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": given}
        command = [sys.executable, "-c", "import jax; jax.devices()"]
        return subprocess.run(command, env=environment, capture_output=True, timeout=120, check=False).returncode

    assert status(" ".join(GPU_FLAGS)) == 0
    assert status("--xla_no_such_flag=true") != 0


def test_the_log_names_the_cache_and_the_flags():
    assert described("/cache", {"XLA_FLAGS": "--xla_a"}) == "compiled programs are kept in /cache; XLA_FLAGS: --xla_a"
    assert described(None, {}) == "compiled programs are not kept; XLA_FLAGS: none"


@pytest.mark.parametrize(("topology", "added"), [("h100:8", GPU_FLAGS), ("v5e:4x4", ()), ("cpu:2", ())])
def test_what_is_compiled_ahead_of_time_has_the_flags_that_launch_sets(topology, added, monkeypatch):
    monkeypatch.setattr(os, "environ", {"XLA_FLAGS": "--xla_a=1"})
    monkeypatch.setattr(xla_flags, "version", lambda _: ACCEPTED_BY[0])
    prepare_platform(topology)
    given = os.environ["XLA_FLAGS"].split()
    assert given[0] == "--xla_a=1" and tuple(flag for flag in given if flag in GPU_FLAGS) == added
