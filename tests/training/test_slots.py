"""Devices of one machine, dealt out to runs that go on at the same time."""

import os
import sys

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.training.launchers import Here
from afloc_jax.training.slots import Slot, slots


@pytest.fixture
def machine(tmp_path):
    """The root of a machine with the device files of these names."""

    def make(*names):
        for name in names:
            (tmp_path / "dev" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "dev" / name).touch()
        return str(tmp_path)

    return make


def environments(count, root, environment=None):
    return [dict(slot.environment) for slot in slots(count, environment or {}, root)]


def test_gpus_are_dealt_out_in_equal_parts(machine):
    root = machine("nvidia0", "nvidia1", "nvidia2", "nvidia10", "nvidia3", "nvidiactl", "nvidia-uvm")
    assert environments(2, root) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    named = environments(2, root, {"CUDA_VISIBLE_DEVICES": "GPU-a, GPU-b"})
    assert named == [{"CUDA_VISIBLE_DEVICES": "GPU-a"}, {"CUDA_VISIBLE_DEVICES": "GPU-b"}]


def test_more_runs_than_gpus_share_them_and_their_memory(machine):
    found = environments(4, machine("nvidia0", "nvidia1"))
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["0", "1", "0", "1"]
    assert {one["XLA_PYTHON_CLIENT_MEM_FRACTION"] for one in found} == {"0.450"}
    with pytest.raises(UsageError, match="must be a multiple of the 2 GPUs"):
        environments(3, machine())


@pytest.mark.parametrize("files", [["accel0", "accel1", "accel2", "accel3"], ["vfio/0", "vfio/1", "vfio/2", "vfio/3"]])
def test_chips_are_not_shared(machine, files):
    root = machine(*files, "vfio/vfio")
    assert environments(2, root)[1] == {
        "TPU_VISIBLE_CHIPS": "2,3",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,2,1",
        "TPU_PROCESS_BOUNDS": "1,1,1",
    }
    with pytest.raises(UsageError, match="there are 4 TPU chips"):
        slots(8, {}, root)


def test_without_accelerators_runs_get_cores_of_their_own(machine, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5}, raising=False)
    assert [slot.cores for slot in slots(2, {}, machine())] == [{0, 2}, {1, 5}]
    root, environment = machine("nvidia0"), {"JAX_PLATFORMS": "cpu"}
    assert [slot.cores for slot in slots(2, environment, root)] == [{0, 2}, {1, 5}]
    assert slots(1, {}, root) == [Slot()]
    assert slots(8, environment, root) == [Slot()] * 8


def test_a_run_gets_the_environment_and_the_cores_of_its_slot(tmp_path):
    launcher = Here(2, {"CUDA_VISIBLE_DEVICES": "7,8"})
    told = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'])"
    logs = [Path(tmp_path / name) for name in ("a.log", "b.log")]
    started = [launcher.start([sys.executable, "-c", told], log) for log in logs]
    for one in started:
        one._child.wait(timeout=60)
    assert [one.status() for one in started] == [0, 0]
    assert [log.read_text().strip() for log in logs] == ["7", "8"]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="cores of a process cannot be set here")
def test_a_run_keeps_to_its_cores(tmp_path):
    core = min(os.sched_getaffinity(0))
    launcher = Here(1, {})
    launcher._slots = [Slot(cores=frozenset({core}))]
    log = Path(tmp_path / "a.log")
    # The cores are set while Python starts.
    told = "import os, time\nwhile len(os.sched_getaffinity(0)) > 1: time.sleep(0.01)\nprint(os.sched_getaffinity(0))"
    one = launcher.start([sys.executable, "-c", told], log)
    one._child.wait(timeout=60)
    assert one.status() == 0 and log.read_text().strip() == str({core})


def test_a_killed_run_has_the_status_of_a_shell(tmp_path):
    one = Here(1, {}).start([sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"], Path(tmp_path / "a.log"))
    one._child.wait(timeout=60)
    assert one.status() == 137
