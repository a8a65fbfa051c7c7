"""Runs that are stopped and go on: by a signal, in a validation, split over devices, from a damaged checkpoint."""

import json
import os
import shutil
import signal
import threading
import time
from functools import partial

import jax
import numpy as np
import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation import run as running
from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.training import checkpoints as checkpointing
from afloc_jax.training import loop as loops
from afloc_jax.training import mesh as meshes
from afloc_jax.training import train as training
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.failures import Interrupted
from afloc_jax.training.optimizer import Plateau
from afloc_jax.weights.folder import load_model
from tests.training.conftest import last_arrays, records, signal_at, tiny_config, train

pytestmark = pytest.mark.usefixtures("memory", "steps_compiled_once")


def test_a_run_stopped_by_sigterm_goes_on_bit_for_bit(finished, config, tmp_path, monkeypatch, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        assert train(config, tmp_path) == 128 + signal.SIGTERM
    assert "SIGTERM: saved at step 2; run the same command to go on" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is handler
    assert not (tmp_path / "model").exists() and not (tmp_path / "finished.json").exists()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(
            '{"step": 3, "split": "train", "loss": 0.0}\n{"step": 4, "spl'
        )  # left by a run that was killed later
    assert train(config, tmp_path) == 0
    assert "going on from step 2 of 6" in capsys.readouterr().err

    expected, found = last_arrays(finished), last_arrays(tmp_path)
    assert expected.keys() == found.keys() and len(found) > 50
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)
    timing = {"examples_per_second", "input_wait_fraction", "step_seconds", "flops_per_second"}
    for ours, theirs in zip(*(read_metrics(run / "metrics.jsonl") for run in (tmp_path, finished)), strict=True):
        assert {k: ours[k] for k in ours.keys() - timing} == {k: theirs[k] for k in theirs.keys() - timing}


def test_a_signal_where_nothing_must_be_saved_ends_the_run_at_once_and_costs_nothing(
    finished, config, tmp_path, monkeypatch, capsys
):
    """Before the first step; while the model is written; in the evaluation. What was finished is not done again."""
    steps, step = [], loops.Loop._step
    monkeypatch.setattr(loops.Loop, "_step", lambda self, batches: (steps.append(1), step(self, batches))[1])
    with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
        signal_at(patch, batch=0)
        train(config, tmp_path)
    assert caught.value.exit_status == 143 and not Checkpoints(tmp_path / "checkpoints", 2).steps()
    assert not (tmp_path / "running.json").exists()

    save_model = training.save_model
    for number in (signal.SIGTERM, signal.SIGINT):
        with monkeypatch.context() as patch, pytest.raises(Interrupted) as caught:
            patch.setattr(training, "save_model", lambda *given: os.kill(os.getpid(), number) or save_model(*given))  # noqa: B023
            train(config, tmp_path)
        assert caught.value.exit_status == 128 + number
        assert len(steps) == 7 and not (tmp_path / "finished.json").exists()  # one was in the run that was cut

    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(running, "evaluate_datasets", lambda *given: os.kill(os.getpid(), signal.SIGTERM))
        train(config, tmp_path)
    weights = (tmp_path / "model/model.safetensors").stat().st_mtime_ns
    assert train(config, tmp_path) == 0
    assert len(steps) == 7 and (tmp_path / "model/model.safetensors").stat().st_mtime_ns == weights
    ours, theirs = (load_model(run / "model")[1]["params"] for run in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_devices(finished, config, tmp_path, monkeypatch, capsys):
    """Two instead of eight: to the same losses but for rounding."""
    with monkeypatch.context() as patch:
        signal_at(patch, batch=4)  # of the second epoch
        assert train(config, tmp_path) == 128 + signal.SIGTERM
    monkeypatch.setattr(training, "build_mesh", partial(meshes.build_mesh, jax.devices()[:2]))
    assert train(config, tmp_path) == 0
    assert "going on from step 3 of 6" in capsys.readouterr().err
    lines = [read_metrics(run / "metrics.jsonl") for run in (tmp_path, finished)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), rtol=1e-5)


def test_a_validation_cut_short_by_a_signal_is_made_up_for(config, memory, tmp_path, monkeypatch, capsys):
    """The first and the last one; with a rate that validation losses lower, so that a lost one would change weights."""
    memory["validation"].extend(records(8, seed=3))  # two batches: the signal comes between them
    config.optimizer.update(schedule="plateau", decay=0.5)
    through, cut = tmp_path / "through", tmp_path / "cut"
    assert train(config, through) == 0
    for batch, step in ((3, 3), (5, 6)):  # resumed, two of validation and three of training come before
        with monkeypatch.context() as patch:
            signal_at(patch, batch=batch)
            assert train(config, cut) == 128 + signal.SIGTERM
        assert f"SIGTERM: saved at step {step}" in capsys.readouterr().err
        assert Checkpoints(cut / "checkpoints", 2)._loss(step) is None
    assert train(config, cut) == 0

    expected, found = (read_metrics(run / "metrics.jsonl") for run in (through, cut))
    assert [(line["step"], line["split"], line["loss"]) for line in found] == [
        (line["step"], line["split"], line["loss"]) for line in expected
    ]
    for key in ("best_step", "best_validation_loss", "final_validation_loss"):
        facts = [json.loads((run / "finished.json").read_text())[key] for run in (through, cut)]
        assert facts[0] == facts[1] is not None
    for step in (3, 6):
        losses = [Checkpoints(run / "checkpoints", 2)._loss(step) for run in (through, cut)]
        assert losses[0] == losses[1] is not None
    ours, theirs = (load_model(run / "model")[1]["params"] for run in (cut, through))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_plateau_is_counted_on_where_a_run_was_stopped(config, tmp_path, monkeypatch):
    """No loss counts as better than the first: the rate drops after the third validation, stopped before and after."""
    monkeypatch.setattr(loops, "Plateau", partial(Plateau, patience=1, threshold=1.0))
    config.optimizer.update(schedule="plateau", decay=0.5)
    config.training.epochs = 4  # three steps and a validation each
    through, stopped = tmp_path / "through", tmp_path / "stopped"
    assert train(config, through) == 0
    for batch, step in ((9, 7), (4, 10)):  # a batch is placed one step ahead; validations place theirs too
        with monkeypatch.context() as patch:
            signal_at(patch, batch=batch)
            assert train(config, stopped) == 128 + signal.SIGTERM
        assert Checkpoints(stopped / "checkpoints", 2).steps()[-1] == step
    assert train(config, stopped) == 0

    rates = [line["learning_rate"] for line in read_metrics(stopped / "metrics.jsonl") if line["split"] == "train"]
    np.testing.assert_allclose(rates, [1e-3] * 9 + [5e-4] * 3)
    expected, found = last_arrays(through), last_arrays(stopped)
    assert expected.keys() == found.keys()
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_workdir_from_before_auto_goes_on_with_the_word_level_of_low_rank(config, tmp_path, monkeypatch, capsys):
    """To the same numbers but for rounding, and the log says so. config.json holds a boolean there."""
    through, resumed = tmp_path / "through", tmp_path / "resumed"
    config.loss.low_rank = False
    assert train(config, through) == 0
    assert "loss.low_rank is off: the config says so" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        assert train(config, resumed) == 128 + signal.SIGTERM
    assert json.loads((resumed / "config.json").read_text())["loss"]["low_rank"] is False
    assert train(tiny_config(), resumed) == 0
    said = capsys.readouterr().err
    assert "going on from step 2 of 6" in said
    assert "loss.low_rank is on: words are compared in 4 dimensions instead of 16" in said
    assert json.loads((resumed / "config.json").read_text())["loss"]["low_rank"] == "auto"

    lines = [read_metrics(run / "metrics.jsonl") for run in (through, resumed)]
    assert [line["step"] for line in lines[0]] == [line["step"] for line in lines[1]]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), rtol=1e-5)
    np.testing.assert_allclose(*([line.get("loss/word") for line in run] for run in lines), rtol=1e-5)


def test_a_run_with_a_split_state_stops_and_goes_on_split_or_whole(config, tmp_path, monkeypatch, capsys):
    """Bit for bit on the same parts; within rounding on others; the model folder is whole."""
    monkeypatch.setattr(meshes, "WHOLE_BELOW", 256)
    config.training.fsdp = 4
    whole, same, other = (tmp_path / name for name in ("whole", "same", "other"))
    assert train(config, whole) == 0
    for workdir, fsdp in ((same, 4), (other, 2)):
        config.training.fsdp = 4
        with monkeypatch.context() as patch:
            signal_at(patch, batch=2)
            assert train(config, workdir) == 128 + signal.SIGTERM
        config.training.fsdp = fsdp
        assert train(config, workdir) == 0
        assert "going on from step 2 of 6" in capsys.readouterr().err
    expected, repeated, changed = last_arrays(whole), last_arrays(same), last_arrays(other)
    for name in expected:
        np.testing.assert_array_equal(repeated[name], expected[name], err_msg=name)
    lines = [read_metrics(run / "metrics.jsonl") for run in (whole, other)]
    np.testing.assert_allclose(*([line["loss"] for line in run] for run in lines), rtol=1e-5)
    assert any((changed[name] != expected[name]).any() for name in expected)  # other parts add up in another order
    for path, leaf in jax.tree_util.tree_leaves_with_path(load_model(whole / "model")[1]["params"]):
        np.testing.assert_array_equal(leaf, expected["['params']" + jax.tree_util.keystr(path)])


def test_steps_go_on_while_a_checkpoint_is_written_and_a_signal_waits_for_it(config, tmp_path, monkeypatch, capsys):
    """The checkpoint of step 1 is written only after step 2; that of step 3, which a signal asks for, only slowly."""
    two_steps, hashes, waited = threading.Event(), checkpointing.hashes, []

    def slow(folder):
        if folder.name == "1":
            waited.append(two_steps.wait(60))
        else:
            time.sleep(0.5)
        return hashes(folder)

    monkeypatch.setattr(checkpointing, "hashes", slow)
    monkeypatch.setattr(
        loops.Loop, "_check", lambda self, keep: two_steps.set() if keep and self.progress.step == 2 else None
    )
    config.training.update(validate_every=10, checkpoint_every=1)
    signal_at(monkeypatch, batch=3)
    assert train(config, tmp_path) == 128 + signal.SIGTERM
    said = [line for line in capsys.readouterr().err.splitlines() if "checkpoint" in line or "SIGTERM" in line]
    assert waited == [True]
    assert said[-1].startswith("SIGTERM: saved at step 3") and said[-2].startswith("checkpoint of step 3: committed")
    assert not checkpointing.damage(tmp_path / "checkpoints/3")


def test_a_damaged_last_checkpoint_costs_steps_but_not_the_run(finished, config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_at(patch, batch=6)  # in step 5; one of those before it is for validation
        train(config, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints", 2).steps() == [3, 5]
    path = next((tmp_path / "checkpoints/5/state/d").iterdir())
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    assert train(config, tmp_path) == 0
    assert "going on from step 3" in capsys.readouterr().err
    expected, found = last_arrays(finished), last_arrays(tmp_path)
    for name in expected:
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


def test_a_run_whose_checkpoints_are_gone_stops_until_it_is_told_to_start_anew(config, tmp_path, monkeypatch, capsys):
    """And `afloc verify` says the same before and after."""
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        train(config, tmp_path)
    path = next((tmp_path / "checkpoints/2/state/d").iterdir())
    assert main(["verify", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == ["tokenizer: intact", "checkpoints/2: intact"]
    shutil.copytree(tmp_path / "checkpoints/2", tmp_path / "checkpoints/4")
    (tmp_path / "checkpoints/4/manifest.json").unlink()
    assert main(["verify", str(tmp_path)]) == 0, "the rest of a save that was killed"
    assert capsys.readouterr().out.splitlines()[-1] == "checkpoints/4: unfinished (was never completed)"
    shutil.rmtree(tmp_path / "checkpoints/4")
    content = path.read_bytes()
    path.write_bytes(content[:-1] + b"?")
    (tmp_path / "checkpoints.sealed.json").unlink()
    assert main(["verify", str(tmp_path)]) == 1
    damaged = f"checkpoints/2: damaged (is damaged in state/d/{path.name})"
    assert capsys.readouterr().out.splitlines() == ["tokenizer: intact", damaged]
    for _ in range(2):  # the second time what was moved aside says so
        with pytest.raises(UserError, match="step 2 was saved, but no intact checkpoint is left") as caught:
            train(config, tmp_path)
        assert caught.value.exit_status == 1
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        assert train(config, tmp_path, from_scratch=True) == 128 + signal.SIGTERM
    assert "no checkpoint is intact; training starts at step 0" in capsys.readouterr().err
    assert (tmp_path / "checkpoints.damaged/2" / path.relative_to(tmp_path / "checkpoints/2")).exists()
    with pytest.raises(UsageError, match="holds an intact checkpoint of step 2"):
        train(config, tmp_path, from_scratch=True)


def test_a_vocabulary_that_was_changed_does_not_train_other_weights(config, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        train(config, tmp_path)
    path = tmp_path / "tokenizer/tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace("##", "#", 1))
    with pytest.raises(UserError, match=r"tokenizer/tokenizer\.json is not the file that was sealed"):
        train(config, tmp_path)
    path.write_text(text)
    assert train(config, tmp_path) == 0


def test_a_tokenizer_that_was_removed_is_made_again_or_the_run_stops(finished, config, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        signal_at(patch, batch=2)
        train(config, tmp_path)
    kept = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    run, text = tmp_path / "run.json", (tmp_path / "run.json").read_text()
    shutil.rmtree(tmp_path / "tokenizer")
    assert main(["verify", str(tmp_path)]) == 1
    assert capsys.readouterr().out.startswith("tokenizer: damaged (is missing;")
    facts = json.loads(text)
    for other in (
        {**facts, "vocabulary_sha256": "0"},
        {key: facts[key] for key in facts if key != "vocabulary_sha256"},
    ):
        run.write_text(json.dumps(other))
        with pytest.raises(
            UserError, match=r"tokenizer is gone, and nothing says that its vocabulary would be the same"
        ):
            train(config, tmp_path)
    run.write_text(text)
    assert train(config, tmp_path) == 0
    said = capsys.readouterr().err
    assert f"{tmp_path}/tokenizer was gone: the same vocabulary is written again" in said
    assert "going on from step 2 of 6" in said
    assert {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()} == kept
    ours, theirs = (load_model(run / "model")[1]["params"] for run in (tmp_path, finished))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_a_model_that_lost_files_is_written_again_from_its_checkpoint(config, tmp_path, monkeypatch, capsys):
    steps, step = [], loops.Loop._step
    monkeypatch.setattr(loops.Loop, "_step", lambda self, batches: (steps.append(1), step(self, batches))[1])
    assert train(config, tmp_path) == 0
    weights = tmp_path / "model/model.safetensors"
    before = weights.read_bytes()
    weights.unlink()
    (tmp_path / "model/vocab.txt").unlink()
    assert train(config, tmp_path) == 0
    told = f"{tmp_path}/model lacks model.safetensors, vocab.txt: the model is written again from the best checkpoint"
    assert told in capsys.readouterr().err
    assert weights.read_bytes() == before and (tmp_path / "model/vocab.txt").exists() and len(steps) == 6


def test_a_run_that_was_killed_before_its_first_save_starts_anew_and_says_so(config, tmp_path, monkeypatch, capsys):
    def killed(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpointing.Checkpoints, "save", killed)
        train(config, tmp_path)
    capsys.readouterr()
    assert train(config, tmp_path) == 0
    assert f"{tmp_path}: no checkpoint was saved before; training starts at step 0\n" in capsys.readouterr().err


def test_a_second_run_in_a_workdir_is_refused_and_the_first_is_not_disturbed(config, tmp_path, monkeypatch):
    refused, before = [], {}

    def second(self, *args):
        self.commit()  # nothing is being written
        before.clear()
        before.update({path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()})
        with pytest.raises(UsageError, match="another run has it") as caught:
            train(config, tmp_path)
        refused.append(caught.value.exit_status)
        assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
        return save(self, *args)

    save = checkpointing.Checkpoints.save
    with monkeypatch.context() as patch:
        patch.setattr(checkpointing.Checkpoints, "save", second)
        assert train(config, tmp_path) == 0
    assert refused == [2, 2] and len(before) > 5
    assert not (tmp_path / "running.json").exists()
