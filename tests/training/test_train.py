"""Runs from start to end on synthetic records: what they leave, how they stop, how they go on."""

import json
import os
import re
import shutil
import signal
import threading
import time
from functools import partial

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from ml_collections import ConfigDict

import afloc_jax
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.training import assembly, peak_rates, start
from afloc_jax.training import checkpoints as checkpointing
from afloc_jax.training import loop as loops
from afloc_jax.training import mesh as meshes
from afloc_jax.training import train as training
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.failures import NonFiniteError
from afloc_jax.training.flops import step_flops
from afloc_jax.training.optimizer import Plateau
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import LossMetrics
from afloc_jax.weights.folder import load_model
from data_pipelines.batches import training_batches
from data_pipelines.tokens import load_tokenizer
from tests.training.conftest import batches_of, changed, records, tiny_config, train

pytestmark = pytest.mark.usefixtures("memory")


def arrays(folder):
    """Every array that Orbax wrote to `folder`, by path in its tree, read without knowing its structure."""
    with ocp.StandardCheckpointer() as checkpointer:
        tree = checkpointer.restore(folder.absolute())
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def last_arrays(workdir):
    step = Checkpoints(workdir / "checkpoints", 1).steps()[-1]
    return arrays(workdir / "checkpoints" / str(step) / "state")


def memory_split():
    return records(24, seed=1)


def train_config(config, workdir):
    """The config with the vocabulary size that the run in `workdir` gave it."""
    return start.with_vocabulary(RunConfig.from_config(config), load_tokenizer(workdir / "tokenizer"))


def signal_at(monkeypatch, batch, number=signal.SIGTERM):
    """The process gets a signal as it places its batch number `batch`, counted from 0."""
    place = loops.place_batch
    count = iter(range(1000))

    def placing(arrays, mesh):
        if next(count) == batch:
            os.kill(os.getpid(), number)
        return place(arrays, mesh)

    monkeypatch.setattr(loops, "place_batch", placing)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An uninterrupted run of the tiny config."""
    with pytest.MonkeyPatch.context() as patch:
        splits = {"train": memory_split(), "validation": records(8, seed=2)}
        patch.setattr(training, "open_source", lambda name, directory, split, **_: splits[split])
        workdir = tmp_path_factory.mktemp("finished")
        assert train(tiny_config(), workdir) == 0
    return workdir


def test_a_run_leaves_what_the_interface_promises(finished):
    lines = read_metrics(finished / "metrics.jsonl")
    assert [(line["step"], line["split"]) for line in lines] == [
        (1, "train"), (2, "train"), (3, "train"), (3, "validation"),
        (4, "train"), (5, "train"), (6, "train"), (6, "validation"),
    ]  # fmt: skip
    parts = {"loss/report", "loss/sentence", "loss/word"}
    assert {"loss", "learning_rate", "grad_norm", "examples_per_second", "input_wait_fraction", *parts} < set(lines[2])
    for line in lines:
        np.testing.assert_allclose(line["loss"], sum(line[part] for part in parts), rtol=1e-6)
    assert [round(line["learning_rate"], 6) for line in lines if line["split"] == "train"] == [1e-3] * 3 + [9e-4] * 3
    assert list(finished.glob("events.out.tfevents*")) and (finished / "report" / "index.html").is_file()
    assert json.loads((finished / "run.json").read_text())["pairs"] == 24
    facts = json.loads((finished / "finished.json").read_text())
    assert facts["steps"] == 6 and facts["evaluation"] is not None
    assert facts["best_validation_loss"] == min(line["loss"] for line in lines if line["split"] == "validation")


def test_the_model_folder_holds_the_best_weights(finished):
    facts = json.loads((finished / "finished.json").read_text())
    config, variables, tokenizer = load_model(finished / "model")
    assert config.preprocessing.image_size == 32  # the records', though the training config names no size
    assert config.architecture.text.structure.vocab_size == len(tokenizer.get_vocab())
    arrays = last_arrays(finished)
    assert facts["best_step"] == 6  # so the newest checkpoint is the best
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables["params"]):
        np.testing.assert_array_equal(leaf, arrays["['params']" + jax.tree_util.keystr(path)])


def test_the_model_folder_says_which_pieces_no_training_report_held(finished, config, tmp_path):
    pieces = (finished / "model" / "unseen_pieces.txt").read_text().split()
    assert (finished / "tokenizer" / "unseen_pieces.txt").read_text().split() == pieces == sorted(pieces)
    vocabulary = set(load_model(finished / "model").tokenizer.get_vocab())
    words = {word for record in memory_split() for sentence in record.sentences for word in sentence.split()}
    assert set(pieces) < vocabulary and not words & set(pieces), "words of the reports are pieces of their own"
    model = afloc_jax.load(finished / "model")
    known, unknown = sorted(words)[0], "zebra"
    assert [reading.unknown_words for reading in model.examine([known, f"{known} {unknown}"])] == [(), (unknown,)]

    data = training.Data(memory_split(), [], load_model(finished / "model").tokenizer)
    config.init_from = str(finished / "model")
    assert training._unseen_pieces(RunConfig.from_config(config), data) == frozenset(pieces)
    shutil.copytree(finished / "model", tmp_path / "older")
    (tmp_path / "older" / "unseen_pieces.txt").unlink()
    config.init_from = str(tmp_path / "older")
    assert training._unseen_pieces(RunConfig.from_config(config), data) is None, "what it was trained on is not known"
    config.init_from, config.model.text.tokenizer = "", "somewhere"
    assert training._unseen_pieces(RunConfig.from_config(config), data) is None, "an encoder trained elsewhere"


def test_a_finished_run_says_so(finished, config, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert train(config, finished) == 0
    assert "already finished after 6 steps" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert after == before


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


def test_the_log_shows_how_long_steps_wait_for_their_batch(config, tmp_path, monkeypatch):
    class Slow:
        def __init__(self, *arguments, **named):
            self._batches = training_batches(*arguments, **named)

        def iterate(self, start):
            for batch in self._batches.iterate(start):
                time.sleep(0.25)
                yield batch

    shown = []
    monkeypatch.setattr(loops, "training_batches", Slow)
    monkeypatch.setattr(loops.tqdm, "set_postfix", lambda self, told, refresh: shown.append(told))
    config.training.update(steps=3)
    assert train(config, tmp_path) == 0
    # The first step compiles and is not timed. The second waits for the batch of the third, after which there is none.
    line = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"][1]
    assert 0.25 <= line["input_wait_fraction"] * line["step_seconds"] < 1
    assert line["examples_per_second"] * line["step_seconds"] == pytest.approx(config.training.batch_size)
    assert shown[1]["input_wait"] == f"{line['input_wait_fraction']:.0%}"


def test_the_next_batch_is_on_the_devices_before_a_step_is_waited_for(config, tmp_path, monkeypatch):
    events, place, check = [], loops.place_batch, loops.Loop._check
    monkeypatch.setattr(loops, "place_batch", lambda *given: (events.append("batch placed"), place(*given))[1])
    monkeypatch.setattr(loops.Loop, "_check", lambda self, keep: (events.append("metrics read"), check(self, keep))[1])
    config.training.update(steps=3, log_every=10)
    assert train(config, tmp_path) == 0
    assert events[:6] == ["batch placed"] * 2 + ["metrics read", "batch placed"] + ["metrics read"] * 2


def test_the_share_of_peak_is_the_counted_work_over_the_rate_of_known_devices(config, tmp_path, monkeypatch, capsys):
    config.training.update(steps=3)
    assert train(config, tmp_path / "cpu") == 0
    assert not any("mfu" in line for line in read_metrics(tmp_path / "cpu/metrics.jsonl"))
    assert "of peak" not in capsys.readouterr().err
    monkeypatch.setitem(peak_rates.PEAK_RATES, jax.devices()[0].device_kind, 1e9)
    assert train(config, tmp_path / "known") == 0
    lines = [line for line in read_metrics(tmp_path / "known/metrics.jsonl") if line["split"] == "train"]
    assert "mfu" not in lines[0]  # nothing has been timed yet
    tokenizer = load_tokenizer(tmp_path / "known/tokenizer")
    work = step_flops(assembly.assemble(train_config(config, tmp_path / "known"), meshes.build_mesh()).config, 32)
    for number, line in enumerate(lines[1:], start=1):
        batch = batches_of(memory_split(), config, tokenizer).batch_at(number)
        flops = work.total(8, batch["word_count"].sum(), batch["sentence_count"].sum())
        assert line["flops_per_second"] * line["step_seconds"] == pytest.approx(flops)
        assert line["mfu"] == pytest.approx(line["flops_per_second"] / (1e9 * jax.device_count()))
    assert f"left, {lines[2]['mfu']:.1%} of peak" in capsys.readouterr().err


def test_a_log_file_gets_a_line_every_log_step(config, tmp_path, capsys):
    config.training.update(steps=3)
    assert train(config, tmp_path) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("step ")]
    assert re.fullmatch(r"step 1 of 3, loss \d+\.\d{3}", lines[0]), "nothing has been timed yet"
    assert re.fullmatch(r"step 2 of 3, loss \d+\.\d{3}, \d+\.\d examples/s, \d:\d\d:\d\d left", lines[1])
    assert lines[2].endswith(" 0:00:00 left") and len(lines) == 3


def test_steps_go_on_while_a_checkpoint_is_written_and_a_signal_waits_for_it(config, tmp_path, monkeypatch, capsys):
    """The checkpoint of step 1 is written only after step 2; that of step 3, which a signal asks for, only slowly."""
    two_steps, hashes, waited = threading.Event(), checkpointing._hashes, []

    def slow(folder):
        if folder.name == "1":
            waited.append(two_steps.wait(60))
        else:
            time.sleep(0.5)
        return hashes(folder)

    monkeypatch.setattr(checkpointing, "_hashes", slow)
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


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(config, tmp_path, monkeypatch):
    make = start.first_variables

    def overflowing(config):
        variables = make(config)
        whole = variables["params"]["image_encoder"]["project_whole"]
        whole["kernel"] = np.full_like(whole["kernel"], 3e38)  # finite, but no sum of two of them is
        return variables

    monkeypatch.setattr(start, "first_variables", overflowing)
    with pytest.raises(NonFiniteError, match=r"^step 0: loss (nan|inf).*record1_\d+, .*nonfinite/step_0") as caught:
        train(config, tmp_path)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 1
    folder = tmp_path / "nonfinite" / "step_0"
    told = json.loads((folder / "batch.json").read_text())
    assert told["step"] == 0 and told["metrics"]["loss"] in ("nan", "inf")
    batch = batches_of(memory_split(), config, load_tokenizer(tmp_path / "tokenizer")).batch_at(0)
    assert told["records"] == [f"record1_{row}" for row in batch["index"]]
    # One more step was under way when this one was looked at; it changed nothing either.
    state = arrays(folder / "state")
    assert state["['step']"] == 0 and all(np.isfinite(leaf).all() for leaf in state.values())
    untouched = overflowing(train_config(config, tmp_path))
    for path, leaf in jax.tree_util.tree_leaves_with_path(untouched["params"]):
        np.testing.assert_array_equal(state["['params']" + jax.tree_util.keystr(path)], leaf)
    assert not Checkpoints(tmp_path / "checkpoints", 1).steps()
    assert not (tmp_path / "model").exists()


def test_a_validation_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch):
    fake = lambda params, statistics, batch: LossMetrics(np.nan, {})  # noqa: E731
    monkeypatch.setattr(assembly, "build_validation_step", lambda *_: fake)
    with pytest.raises(NonFiniteError, match=r"^validation after step 3: loss nan\. Records of the batch: record2_0, "):
        train(config, tmp_path)
    folder = tmp_path / "nonfinite" / "validation_3"
    assert json.loads((folder / "batch.json").read_text())["records"] == [f"record2_{row}" for row in range(8)]
    assert arrays(folder / "state")["['step']"] == 3
    assert [line["split"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["train"] * 3


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.micro_batch", 3, "micro_batch"),
        ("data.max_tokens", 64, "max_position_embeddings"),
        ("loss.contrast_group", 4, ""),
    ],
)
def test_what_only_the_network_refuses_is_refused_before_anything_is_written(
    config, tmp_path, capsys, key, value, message
):
    """So that the mended command finds no working directory of another config."""
    changed(config, {key: value})
    if not message:
        assert train(config, tmp_path, dry_run=True) == 0
        assert capsys.readouterr().err.splitlines() == [
            "loss.low_rank is on: words are compared in 4 dimensions instead of 16",
            "tiny: the config is valid",
        ]
        return
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=message) as caught:
            train(config, tmp_path, dry_run=dry_run)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_the_training_data_themselves_may_be_evaluated(tmp_path):
    """Their records are there by the time that is checked; entries may be plain dicts."""
    config = tiny_config()
    config.data.update(dataset="phantom", directory=str(tmp_path / "data"))
    config.data.builder = ConfigDict({"train": 12, "validation": 8, "test": 4, "image_size": 32})
    config.evaluation.datasets = ({"name": "phantom", "directory": str(tmp_path / "data"), "builder": {"test": 4}},)
    training.check_evaluation(RunConfig.from_config(config))
    config.evaluation.datasets = ({"name": "pairs", "directory": str(tmp_path / "data")},)
    with pytest.raises(UserError, match="pairs: no prepared records"):
        training.check_evaluation(RunConfig.from_config(config))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "rsnaa"}, UsageError, "rsnaa: unknown data set"),
        ({"name": "masks", "raw": "nowhere"}, UserError, "masks: no folder 'nowhere' with the raw files"),
        ({"name": "rsna"}, UserError, "rsna: no prepared records of 'rsna'"),
        ({"name": "phantom", "builder": {"testt": 3}}, UsageError, "phantom: phantom has no argument 'testt'"),
    ],
)
def test_evaluation_data_that_are_not_there_are_named_before_training(config, tmp_path, given, error, message):
    config.evaluation.datasets = (ConfigDict({"directory": str(tmp_path / "data"), **given}),)
    with pytest.raises(error, match=rf"^config\.evaluation\.datasets, {message}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_early_stopping_ends_the_run_and_keeps_the_best(config, tmp_path, monkeypatch):
    losses = iter([5.0, 4.0, 4.5, 4.0, 3.0])  # steps 1, 2, ...: two in a row without improvement after step 2
    fake = lambda params, statistics, batch: LossMetrics(next(losses), {})  # noqa: E731
    monkeypatch.setattr(assembly, "build_validation_step", lambda *_: fake)
    config.training.update(steps=20, validate_every=1, early_stopping=2, keep_best=1)
    assert train(config, tmp_path) == 0
    facts = json.loads((tmp_path / "finished.json").read_text())
    assert facts["stopped_early"] and (facts["steps"], facts["best_step"], facts["best_validation_loss"]) == (4, 2, 4.0)
    assert Checkpoints(tmp_path / "checkpoints", 1).steps() == [2, 4]


def test_a_split_smaller_than_the_batch_is_named(config, memory, tmp_path):
    config.training.batch_size = 32
    with pytest.raises(UsageError, match=r"batch_size = 32: split 'train' of pairs has only 24 pairs"):
        train(config, tmp_path)


def test_a_failed_evaluation_keeps_the_model_and_is_all_that_is_left(config, tmp_path, monkeypatch, capsys):
    from afloc_jax.evaluation import page as report

    config.training.update(steps=1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"the trained model is safe in .*no ink"):
        patch.setattr(report, "write_report", lambda workdir: (_ for _ in ()).throw(OSError("no ink")))
        train(config, tmp_path)
    assert json.loads((tmp_path / "finished.json").read_text())["evaluation"] is None
    load_model(tmp_path / "model")
    monkeypatch.setattr(loops.Loop, "run", None)  # training again would fail
    assert train(config, tmp_path) == 0
    assert (tmp_path / "report/index.html").is_file()


def test_training_starts_from_the_weights_of_a_model_folder(finished, config):
    config.init_from = str(finished / "model")
    ours, theirs = start.first_variables(train_config(config, finished)), load_model(finished / "model")[1]
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)
    config.model.image.options.widths = (4, 8, 16)
    with pytest.raises(UsageError, match=r"config\.init_from = .*make config\.model that of"):
        start.first_variables(train_config(config, finished))
