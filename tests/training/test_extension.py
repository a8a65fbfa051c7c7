"""A finished run that is given more steps: what it does, what it says, and what is refused."""

import json
import shutil
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.files import Path
from afloc_jax.training import extension
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.optimizer import SCHEDULES, Extension, OptimizerSettings, build_schedule
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.workdir import check_workdir
from tests.training.conftest import changed, last_arrays, signal_at, tiny_config, train

LONGER = {"training.epochs": 4, "training.extend": "reschedule"}


def rates(schedule, total, extensions=(), **options):
    """The learning rate of every step, three to an epoch."""
    settings = OptimizerSettings(schedule=schedule, lr=1.0, **options)
    rate = build_schedule(settings, 3, total, extensions)
    return np.array([float(rate(jnp.asarray(step))) for step in range(total)])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 2])
def test_a_schedule_is_laid_out_anew_or_held_from_the_extension_on(schedule, warmup):
    first, whole = rates(schedule, 6, warmup_steps=warmup), rates(schedule, 12, warmup_steps=warmup)
    anew = rates(schedule, 12, [Extension(6, "reschedule")], warmup_steps=warmup)
    np.testing.assert_array_equal(anew, [*first, *whole[6:]])
    held = rates(schedule, 12, [Extension(6, "hold")], warmup_steps=warmup)
    np.testing.assert_array_equal(held, [*first, *[first[-1]] * 6])
    twice = rates(schedule, 15, [Extension(6, "reschedule"), Extension(12, "hold")], warmup_steps=warmup)
    np.testing.assert_array_equal(twice, [*anew, *[anew[-1]] * 3])


@pytest.fixture(scope="module")
def extended(finished, tmp_path_factory):
    """The finished run of six steps, extended to twelve."""
    from afloc_jax.training import train as training
    from tests.training.conftest import records

    with pytest.MonkeyPatch.context() as patch:
        splits = {"train": records(24, seed=1), "validation": records(8, seed=2)}
        patch.setattr(training, "open_source", lambda name, directory, split, **_: splits[split])
        workdir = tmp_path_factory.mktemp("extended") / "run"
        shutil.copytree(finished, workdir)
        assert train(changed(tiny_config(), LONGER), workdir) == 0
    return workdir


def test_a_finished_run_goes_on_and_states_it_everywhere(finished, extended):
    before, after = (read_metrics(run / "metrics.jsonl") for run in (finished, extended))
    assert after[: len(before)] == before
    trained = [line for line in after[len(before) :] if line["split"] == "train"]
    assert [line["step"] for line in trained] == [7, 8, 9, 10, 11, 12]
    assert {line["extended_from"] for line in trained} == {6.0} and "extended_from" not in before[0]
    lr, decay = 1e-3, 0.9
    expected = [lr * decay ** ((step - 1) // 3) for step in range(7, 13)]
    np.testing.assert_allclose([line["learning_rate"] for line in trained], expected, rtol=1e-6)

    told = (
        "from step 6 to 12, the learning rate laid out anew (reschedule). This is not the same as one run of 12 steps"
    )
    assert json.loads((extended / "run.json").read_text())["extended"] == told
    assert f"| extended | {told} |" in (extended / "model/README.md").read_text()
    assert told in (extended / "report/index.html").read_text()
    assert json.loads((extended / "finished.json").read_text())["steps"] == 12
    assert json.loads((extended / "config.json").read_text())["training"]["epochs"] == 4
    assert Checkpoints(extended / "checkpoints", 1).steps()[-1] == 12


@pytest.mark.usefixtures("memory")
def test_an_extended_run_that_is_stopped_resumes_bit_for_bit_also_without_the_option(
    finished, extended, tmp_path, monkeypatch, capsys
):
    workdir = tmp_path / "run"
    shutil.copytree(finished, workdir)
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        assert train(changed(tiny_config(), LONGER), workdir) == 128 + signal.SIGTERM
    assert not (workdir / "finished.json").exists() and (workdir / "model").exists()
    assert train(changed(tiny_config(), {"training.epochs": 4}), workdir) == 0
    said = capsys.readouterr().err
    assert "going on from step 6 of 12" in said and "going on from step 8 of 12" in said
    ours, theirs = last_arrays(workdir), last_arrays(extended)
    for name in theirs:
        np.testing.assert_array_equal(ours[name], theirs[name], err_msg=name)
    assert train(changed(tiny_config(), LONGER), workdir) == 0
    assert "already finished after 12 steps" in capsys.readouterr().err


@pytest.mark.usefixtures("memory")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.epochs": 4}, "or extend the run if it is finished"),
        ({**LONGER, "optimizer.lr": 0.5}, "belongs to another config"),
        ({**LONGER, "training.epochs": 1}, "has finished 6 steps and would have 3: steps and epochs may only grow"),
    ],
)
def test_only_the_length_may_change_and_only_grow(finished, tmp_path, changes, message):
    shutil.copytree(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")}
    with pytest.raises(UsageError, match=message):
        train(changed(tiny_config(), changes), tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").glob("*.json*")} == before


def test_a_rate_of_almost_nothing_is_not_held():
    settings = OptimizerSettings(schedule="cosine", lr=1e-3)
    plan = extension.Plan((extension.Entry(100, "hold", 200, 5),), begins=True)
    rate = build_schedule(settings, 10, 200, plan.entries)
    with pytest.raises(UsageError, match=r"would hold the learning rate of the last step, 2\.5e-07, where"):
        plan.check(Path("run"), 200, rate, settings.lr)
    constant = OptimizerSettings(schedule="constant", lr=1e-3)
    plan.check(Path("run"), 200, build_schedule(constant, 10, 200, plan.entries), constant.lr)


# The files alone


def config_of(steps, extend="reschedule"):
    return RunConfig.from_config(changed(tiny_config(), {"training.steps": steps, "training.extend": extend}))


def finish(folder, steps, **facts):
    """The files of a run that has finished, as far as an extension reads them."""
    (folder / "config.json").write_text(json.dumps(config_of(steps, "none").plain()))
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model/config.json").write_text("{}")
    (folder / "model/model.safetensors").touch()
    finished = {"steps": steps, "best_step": steps, "best_validation_loss": 1.0, "final_validation_loss": 1.0}
    finished |= {"stopped_early": False, "training_seconds": 1.0, **facts}
    (folder / "finished.json").write_text(json.dumps(finished))


def steps_of(plan):
    return [(entry.from_step, entry.how, entry.steps) for entry in plan.entries]


def test_a_start_that_was_killed_between_the_files_is_made_up_for(tmp_path):
    folder = Path(tmp_path)
    finish(folder, 6)
    planned = extension.plan(config_of(12), folder)
    assert planned.begins and steps_of(planned) == [(6, "reschedule", 12)]
    extension.begin(folder, planned)  # and config.json is not written any more
    check_workdir(config_of(12), folder)
    assert extension.plan(config_of(12), folder) == planned
    assert steps_of(extension.plan(config_of(6), folder)) == []  # the command before: the run as it was
    with pytest.raises(UsageError, match="only a finished run can be extended"):
        extension.plan(config_of(24), folder)


def test_extensions_follow_each_other(tmp_path):
    folder = Path(tmp_path)
    finish(folder, 6)
    extension.begin(folder, extension.plan(config_of(12), folder))
    finish(folder, 12)
    assert steps_of(extension.plan(config_of(12), folder)) == [(6, "reschedule", 12)]
    planned = extension.plan(config_of(20, "hold"), folder)
    assert steps_of(planned) == [(6, "reschedule", 12), (12, "hold", 20)]
    assert planned.told(20).startswith(
        "from step 6 to 12, the learning rate laid out anew (reschedule); from step 12 to"
    )


def test_a_run_that_stopped_early_or_has_not_ended_is_not_extended(tmp_path):
    folder = Path(tmp_path)
    finish(folder, 6, stopped_early=True)
    with pytest.raises(UsageError, match="stopped early, after 6 steps"):
        extension.plan(config_of(12), folder)
    (folder / "finished.json").unlink()
    with pytest.raises(UsageError, match="only a finished run can be extended"):
        extension.plan(config_of(12), folder)
