"""Traces of training steps."""

import os
import signal

import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training import loop as loops
from afloc_jax.training.tracing import StepRange
from tests.training.conftest import train

pytestmark = pytest.mark.usefixtures("memory", "steps_compiled_once")


def traced(workdir):
    """The trace of a run, which names are read from as bytes: the format needs a package of its own."""
    (trace,) = workdir.glob("profile/plugins/profile/*/*.xplane.pb")
    return trace.read_bytes()


def test_a_range_of_steps_is_traced_where_the_log_says(config, tmp_path, capsys):
    assert train(config, tmp_path, profile=StepRange(2, 4)) == 0
    assert f"profile of steps 2 to 3: {tmp_path}/profile; open it with xprof --port 8791" in capsys.readouterr().err
    trace = traced(tmp_path)
    assert b"step_num" in trace and b"jit_train_step" in trace


def test_a_trace_ends_with_the_run(config, tmp_path, monkeypatch, capsys):
    step = loops.Loop._step

    def stopped(self, batches):
        step(self, batches)
        if self.progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(loops.Loop, "_step", stopped)
    assert train(config, tmp_path, profile=StepRange(1, 6)) == 128 + signal.SIGTERM
    assert "profile of steps 1 to 2: " in capsys.readouterr().err
    assert b"jit_train_step" in traced(tmp_path)


def test_steps_that_the_run_does_not_have_are_refused_before_anything_is_written(config, tmp_path):
    with pytest.raises(UsageError, match=r"--profile=2:7: the run has only 6 steps; STOP may be at most 6"):
        train(config, tmp_path / "run", profile=StepRange(2, 7))
    assert not (tmp_path / "run").exists()
    config.training.update(steps=3)
    with pytest.raises(UsageError, match="--profile=2:7: the run has only 3 steps"):
        train(config, tmp_path / "run", profile=StepRange(2, 7), dry_run=True)
    assert train(config, tmp_path / "run") == 0
    with pytest.raises(UsageError, match=r"--profile=1:2: the run goes on from step 3; START must be at least 3"):
        train(config, tmp_path / "run", profile=StepRange(1, 2))
    (tmp_path / "run/finished.json").unlink()
    with pytest.raises(UsageError, match=r"--profile=1:2: the run goes on from step 3"):
        train(config, tmp_path / "run", profile=StepRange(1, 2))
