"""Runs from start to end on synthetic records: what they leave, what ends them."""

import json
import shutil

import jax
import numpy as np
import pytest

import afloc_jax
import launch
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.training import assembly, start
from afloc_jax.training import loop as loops
from afloc_jax.training import train as training
from afloc_jax.training.checkpoints import Checkpoints
from afloc_jax.training.failures import NonFiniteError
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.step import LossMetrics
from afloc_jax.training.tokenizer import unseen_pieces
from afloc_jax.weights.folder import load_model
from data_pipelines.tokens import load_tokenizer
from tests.training.conftest import SENTENCES, arrays, batches_of, last_arrays, records, train, train_config

pytestmark = pytest.mark.usefixtures("memory")


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
    words = {word for record in records(24, seed=1) for sentence in record.sentences for word in sentence.split()}
    assert set(pieces) < vocabulary and not words & set(pieces), "words of the reports are pieces of their own"
    model = afloc_jax.load(finished / "model")
    known, unknown = sorted(words)[0], "zebra"
    assert [reading.unknown_words for reading in model.examine([known, f"{known} {unknown}"])] == [(), (unknown,)]

    data = training.Data(records(24, seed=1), [], load_model(finished / "model").tokenizer)
    config.init_from = str(finished / "model")
    assert unseen_pieces(RunConfig.from_config(config), data) == frozenset(pieces)
    shutil.copytree(finished / "model", tmp_path / "older")
    (tmp_path / "older" / "unseen_pieces.txt").unlink()
    config.init_from = str(tmp_path / "older")
    assert unseen_pieces(RunConfig.from_config(config), data) is None, "what it was trained on is not known"
    config.init_from, config.model.text.tokenizer = "", "somewhere"
    assert unseen_pieces(RunConfig.from_config(config), data) is None, "an encoder trained elsewhere"


def test_a_finished_run_says_so(finished, config, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert train(config, finished) == 0
    assert "already finished after 6 steps" in capsys.readouterr().err
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    assert after == before


def test_a_loss_that_is_not_finite_stops_the_run_before_it_does_harm(config, tmp_path, monkeypatch, memory, capsys):
    make = start.first_variables

    def overflowing(config):
        variables = make(config)
        whole = variables["params"]["image_encoder"]["project_whole"]
        whole["kernel"] = np.full_like(whole["kernel"], 3e38)  # finite, but no sum of two of them is
        return variables

    monkeypatch.setattr(start, "first_variables", overflowing)
    with pytest.raises(NonFiniteError, match=r"^step 0: loss (nan|inf).*record1_\d+, .*nonfinite/step_0") as caught:
        train(config, tmp_path)
    assert "\n" not in str(caught.value) and caught.value.exit_status == 3
    folder = tmp_path / "nonfinite" / "step_0"
    told = json.loads((folder / "batch.json").read_text())
    assert told["step"] == 0 and told["metrics"]["loss"] in ("nan", "inf")
    batch = batches_of(records(24, seed=1), config, load_tokenizer(tmp_path / "tokenizer")).batch_at(0)
    assert told["records"] == [f"record1_{row}" for row in batch["index"]]
    # One more step was under way when this one was looked at; it changed nothing either.
    state = arrays(folder / "state")
    assert state["['step']"] == 0 and all(np.isfinite(leaf).all() for leaf in state.values())
    untouched = overflowing(train_config(config, tmp_path))
    for path, leaf in jax.tree_util.tree_leaves_with_path(untouched["params"]):
        np.testing.assert_array_equal(state["['params']" + jax.tree_util.keystr(path)], leaf)
    assert not Checkpoints(tmp_path / "checkpoints", 1).steps()
    assert not (tmp_path / "model").exists()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    capsys.readouterr()
    assert launch.main(["launch.py", f"--replay={folder}"]) == 3
    said = capsys.readouterr().err
    assert "first layer whose output is not finite: image_encoder/project_whole, for 8 of 8 records" in said
    assert "without one record, whichever, it is not finite" in said
    assert "launch.py: step_0 is not finite again: loss " in said.splitlines()[-1]
    assert not any(sentence in said for sentence in SENTENCES)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    memory["train"].reverse()
    assert launch.main(["launch.py", f"--replay={folder}"]) == 1
    assert "no batch of this step has the records that were noted" in capsys.readouterr().err


def test_a_validation_loss_that_is_not_finite_stops_the_run(config, tmp_path, monkeypatch, capsys):
    fake = lambda params, statistics, batch: LossMetrics(np.nan, {}, {})  # noqa: E731
    monkeypatch.setattr(assembly, "build_validation_step", lambda *_: fake)
    with pytest.raises(NonFiniteError, match=r"^validation after step 3: loss nan\. Records of the batch: record2_0, "):
        train(config, tmp_path)
    folder = tmp_path / "nonfinite" / "validation_3"
    assert json.loads((folder / "batch.json").read_text())["records"] == [f"record2_{row}" for row in range(8)]
    assert arrays(folder / "state")["['step']"] == 3
    assert launch.main(["launch.py", f"--replay={folder}"]) == 3
    assert "validation_3 is not finite again: loss nan. " in capsys.readouterr().err
    assert [line["split"] for line in read_metrics(tmp_path / "metrics.jsonl")] == ["train"] * 3


def test_early_stopping_ends_the_run_and_keeps_the_best(config, tmp_path, monkeypatch):
    losses = iter([5.0, 4.0, 4.5, 4.0, 3.0])  # steps 1, 2, ...: two in a row without improvement after step 2
    fake = lambda params, statistics, batch: LossMetrics(next(losses), {}, {})  # noqa: E731
    monkeypatch.setattr(assembly, "build_validation_step", lambda *_: fake)
    config.training.update(steps=20, validate_every=1, early_stopping=2, keep_best=1)
    assert train(config, tmp_path) == 0
    facts = json.loads((tmp_path / "finished.json").read_text())
    assert facts["stopped_early"] and (facts["steps"], facts["best_step"], facts["best_validation_loss"]) == (4, 2, 4.0)
    assert Checkpoints(tmp_path / "checkpoints", 1).steps() == [2, 3, 4]


def test_a_failed_evaluation_keeps_the_model_and_is_all_that_is_left(config, tmp_path, monkeypatch, capsys):
    from afloc_jax.evaluation import page as report

    config.training.update(steps=1)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"the trained model is safe in .*no ink"):
        patch.setattr(report, "write_report", lambda workdir: (_ for _ in ()).throw(OSError("no ink")))
        train(config, tmp_path)
    path = tmp_path / "finished.json"
    kept = path.read_text()
    assert json.loads(kept)["evaluation"] is None
    for content in ("[]", "3", "{}", '{"steps": 1}', kept.replace("steps", "stops")):
        path.write_text(content)
        with pytest.raises(UserError, match=r"finished\.json: is not what this program writes; delete it"):
            train(config, tmp_path)
    path.write_text(kept)
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
