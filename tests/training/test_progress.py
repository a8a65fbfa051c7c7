"""What a run says of itself while it trains: waiting for input, share of peak, lines of a log file."""

import re
import time

import jax
import pytest

from afloc_jax.evaluation.report.training import read_metrics
from afloc_jax.training import alarms, assembly, peak_rates
from afloc_jax.training import loop as loops
from afloc_jax.training import mesh as meshes
from afloc_jax.training.flops import step_flops
from data_pipelines.batches import training_batches
from data_pipelines.tokens import load_tokenizer
from tests.training.conftest import batches_of, records, train, train_config

pytestmark = pytest.mark.usefixtures("memory", "steps_compiled_once")


def test_the_log_shows_how_long_steps_wait_for_their_batch_and_what_is_wrong(config, tmp_path, monkeypatch, capsys):
    class Slow:
        def __init__(self, *arguments, **named):
            self._batches = training_batches(*arguments, **named)

        def iterate(self, start):
            for batch in self._batches.iterate(start):
                time.sleep(0.25)
                yield batch

    shown = []
    monkeypatch.setattr(alarms, "EQUAL", 100.0)
    monkeypatch.setattr(alarms, "COLLAPSED_STEPS", 2)
    monkeypatch.setattr(loops, "training_batches", Slow)
    monkeypatch.setattr(loops.tqdm, "set_postfix", lambda self, told, refresh: shown.append(told))
    config.training.update(steps=3)
    assert train(config, tmp_path) == 0
    # The first step compiles and is not timed. The second waits for the batch of the third, after which there is none.
    line = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["split"] == "train"][1]
    assert 0.25 <= line["input_wait_fraction"] * line["step_seconds"] < 1
    assert line["examples_per_second"] * line["step_seconds"] == pytest.approx(config.training.batch_size)
    assert shown[1]["input_wait"] == f"{line['input_wait_fraction']:.0%}"
    assert capsys.readouterr().err.count("level have collapsed for 2 steps") == 3, "once for each level"
    assert (line["collapsed_levels"], line["spikes"]) == (3, 0)


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
        batch = batches_of(records(24, seed=1), config, tokenizer).batch_at(number)
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
