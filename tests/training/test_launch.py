"""What a user types: wrong calls, help, and the whole job from raw files through launch.py."""

import csv
import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import pytest

import launch
from afloc_jax.cli import launching
from afloc_jax.training.settings import RunConfig
from configs import demo_published, published
from tests.training.conftest import SENTENCES, records

ROOT = Path(launch.__file__).parent
AFLOC = f"--config={ROOT / 'configs/afloc.py'}"

WRONG_CALLS = [
    ([], "--config is missing, e.g. --config=demo"),
    (["--config=configs/nowhere.py", "--workdir=w"], "--config=configs/nowhere.py: no such file"),
    ([AFLOC], "--workdir is missing"),
    ([AFLOC, "--workdir=w", "--sweep=configs/sweeps/nothing.py"], "--sweep=configs/sweeps/nothing.py: no such file"),
    ([AFLOC, "--workdir=w", "--wordkir=x"], "Unknown command line flag 'wordkir'"),
    ([AFLOC, "--workdir=w", "--profile=ten"], "--profile=ten: write START:STOP"),
    ([AFLOC, "--workdir=w", "--profile=-1:5"], "--profile=-1:5: write START:STOP"),
    ([AFLOC, "--workdir=w", "--profile="], "--profile=: write START:STOP"),
    ([AFLOC, "--workdir=w", "--profile=5:5"], "--profile=5:5: START must be smaller than STOP"),
    ([AFLOC, "--workdir=w", "--profile=1:2", f"--sweep={ROOT / 'configs/sweeps/levels.py'}"], "not a sweep"),
    ([AFLOC, "--workdir=w", "--max-restarts=-1"], "max_restarts=-1: -1 is not a non-negative integer"),
    ([AFLOC, "--workdir=w", "--max_restarts=1", "--profile=1:2"], "does not trace steps twice; leave out --profile"),
    (
        ["--replay=w/nonfinite/step_0", "--workdir=w"],
        "takes everything from the workdir of its run; leave out --workdir",
    ),
    (["--replay=w/nonfinite/step_0", "--max-restarts=1"], "leave out --max_restarts"),
    (["--replay=w/nonfinite/epoch_0"], "--replay=w/nonfinite/epoch_0: give a folder of nonfinite/"),
    ([AFLOC, "--workdir=w", "extra"], "unexpected argument 'extra'"),
    ([AFLOC, "--workdir=w", "--config.optimizer.rate=1"], "config.optimizer.rate: unknown key; known: name, lr, b1"),
    ([AFLOC, "--workdir=w", "--config.optimizer.lr=-1"], "config.optimizer.lr = -1.0: must be greater than 0"),
    ([AFLOC, "--workdir=w", "--config.seed=one"], "flag --config.seed=one: invalid literal"),
    ([AFLOC, "--workdir=w", "--config.data.dataset=nothing"], "unknown data set 'nothing'"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG_CALLS, ids=[message[:30] for _, message in WRONG_CALLS])
def test_a_wrong_call_ends_with_one_line_and_status_2(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert launch.main(["launch.py", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("launch.py: ") and message in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())  # nothing that the mended call would trip over


@pytest.mark.parametrize("spelled", ["--dry-run", "--dry_run"])
def test_flags_are_taken_with_hyphens_while_values_and_keys_of_the_config_stay_as_written(spelled):
    config = f"--config={ROOT / 'configs/demo.py'}"
    flags = ["--workdir=my-runs/a-b_c", "--config.training.batch_size=16", "--config.name=a-b_c", "--coordinator=a-b:1"]
    values = launch.parse(["launch.py", config, *flags, spelled])
    assert values.dry_run and values.workdir == "my-runs/a-b_c" and values.coordinator == "a-b:1"
    assert (values.config.training.batch_size, values.config.name) == (16, "a-b_c")
    assert not launch.parse(["launch.py", config, *flags, "--no" + spelled[2:]]).dry_run


OWN = """
from configs import afloc
def get_config():
    config = afloc.get_config()
    config.loss.low_rank = True  # as a config file could say before "auto"
    return config
"""


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], None),
        (["--config.loss.low_rank=true"], True),
        (["--config.loss.low_rank=False"], False),
        (["--config.loss.low_rank=auto"], "auto"),
        (["--config.loss.low_rank"], True),  # as a flag of a boolean may be written
        (["--noconfig.loss.low_rank"], False),
    ],
    ids=str,
)
def test_low_rank_takes_a_boolean_or_auto_over_either(flags, value, tmp_path):
    (tmp_path / "own.py").write_text(OWN)
    for config, stated in ((AFLOC, "auto"), (f"--config={tmp_path / 'own.py'}", True)):
        values = launch.parse(["launch.py", config, "--workdir=w", *flags])
        assert repr(RunConfig.from_config(values.config).loss.low_rank) == repr(value if flags else stated)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config():\n    return 1 / 0\n", "ZeroDivisionError"),
        ("def get_config():\n    return None\n", "get_config of that file gives a NoneType, not a ConfigDict"),
        ("import sys\nsys.exit(0)\n", "SystemExit: 0"),
    ],
)
def test_a_config_file_that_gives_no_config_is_a_wrong_call(text, message, tmp_path, capsys):
    (tmp_path / "bad.py").write_text(text)
    assert launch.main(["launch.py", f"--config={tmp_path / 'bad.py'}", "--workdir=w"]) == 2
    assert message in capsys.readouterr().err


def test_an_interrupt_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr(launching, "run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    assert launch.main(["launch.py", AFLOC, "--workdir=w"]) == 130
    said = capsys.readouterr().err
    assert said == "launch.py: interrupted; run the same command to go on from the last checkpoint\n"


def test_help_shows_the_flags_and_an_example(capsys):
    with pytest.raises(SystemExit) as caught:
        launch.main(["launch.py", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "python launch.py --config=configs/demo.py --workdir=runs/demo" in text
    assert "--[no]dry_run" in text and "--workdir" in text


@pytest.fixture
def raw(tmp_path):
    """A folder as a user brings it: images and a table."""
    folder = tmp_path / "raw"
    (folder / "images").mkdir(parents=True)
    with (folder / "pairs.csv").open("w") as file:
        table = csv.writer(file)
        table.writerow(["image", "text", "split"])
        for record in records(24, seed=1) + records(8, seed=2):
            cv2.imwrite(str(folder / "images" / f"{record.id}.png"), record.image)
            split = "train" if record.id.startswith("record1") else "validation"
            table.writerow([f"{record.id}.png", ". ".join(record.sentences) + ".", split])
    return folder


CONFIG = """
from tests.training.conftest import tiny_config
def get_config():
    config = tiny_config()
    config.data.directory, config.data.raw = {data!r}, {raw!r}
    config.data.builder.image_size = 32
    return config
"""


def test_the_whole_job_from_raw_files_to_a_model_folder(raw, tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(data=str(tmp_path / "data"), raw=str(raw)))
    command = ["launch.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    assert launch.main([*command, "--config.data.builder.seed=3"]) == 0
    said = capsys.readouterr().err
    assert "finished after 6 steps" in said
    assert re.search(r"^compiled programs are kept in .+; XLA_FLAGS: ", said, re.MULTILINE)
    for name in ("config.json", "metrics.jsonl", "model/model.safetensors", "report/index.html", "checkpoints/6"):
        assert (tmp_path / "run" / name).exists(), name
    assert json.loads((tmp_path / "run/config.json").read_text())["data"]["builder"] == {"image_size": 32, "seed": 3}
    assert not [*(tmp_path / "run").rglob("*.partial"), *(tmp_path / "run").rglob("*.writing*")]

    everything = "".join(p.read_text(errors="ignore") for p in (tmp_path / "run").glob("*.json*"))
    assert not any(sentence in everything for sentence in SENTENCES)  # report text stays in the records

    assert launch.main(command) == 2
    assert re.search(r"belongs to another config \(data\.builder\.seed: there 3, now None\)", capsys.readouterr().err)


@pytest.mark.parametrize("offer", ["", ":adamw"])
def test_the_published_config_is_valid_with_both_optimisers_of_the_release(offer, tmp_path, capsys):
    file = ROOT / "configs" / "published.py"
    assert launch.main(["launch.py", f"--config={file}{offer}", f"--workdir={tmp_path / 'run'}", "--dry_run"]) == 0
    assert "published: the config is valid" in capsys.readouterr().err and not (tmp_path / "run").exists()


PUBLISHED = """
from configs.published import get_config as published
from tests.training.conftest import tiny_config
def get_config():
    config = published()
    tiny = tiny_config()
    config.model, config.data.max_tokens = tiny.model, tiny.data.max_tokens
    config.model.image.statistics_group, config.loss.contrast_group = 4, 4
    config.data.dataset, config.data.directory = "phantom", {data!r}
    config.data.builder = dict(train=16, validation=13, test=1)
    config.training.update(batch_size=8, steps=2, precision="float32", log_every=1)
    return config
"""


def test_two_steps_as_published_on_the_built_in_data(tmp_path, capsys):
    """Every choice of configs/published.py, with a small network, groups of 4 of 8 pairs, and 13 validation records."""
    (tmp_path / "config.py").write_text(PUBLISHED.format(data=str(tmp_path / "data")))
    command = ["launch.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]
    assert launch.main(command) == 0
    assert "finished after 2 steps" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["split"], line["step"]) for line in lines] == [("train", 1), ("train", 2), ("validation", 2)]
    assert all(0 < line["loss/word"] < 10 for line in lines)
    assert json.loads((tmp_path / "run/model/config.json").read_text())["preprocessing"]["grey"] == "cv2"
    assert launch.main([*command[:2], f"--workdir={tmp_path / 'more'}", "--config.training.batch_size=16"]) == 2
    assert "the 13 pairs of split 'validation' do not fill a batch of 16" in capsys.readouterr().err


DEMO_PUBLISHED = """
from configs.demo_published import get_config as demo_published
def get_config():
    config = demo_published()
    config.data.directory = {data!r}
    config.data.builder = dict(train=64, validation=64, test=4)
    for entry in config.evaluation.datasets:
        entry.builder = config.data.builder
    config.model.image.input_size = 32
    config.model.image.options.update(widths=(4, 8, 8, 8), stem_width=4)
    config.training.update(epochs=2, log_every=1)
    return config
"""


def test_the_demo_of_the_published_objective_departs_in_rate_and_epochs():
    """Its loss, groups, drawing, maps and optimiser are those of configs/published.py, but for rate and epochs."""
    run, release = RunConfig.from_config(demo_published.get_config()), RunConfig.from_config(published.get_config())
    assert run.loss == release.loss and run.localization == release.localization
    assert run.optimizer == dataclasses.replace(release.optimizer, lr=1e-3)
    phantoms = {"dataset": "phantom", "builder": run.data.builder, "max_tokens": 80}
    assert run.data == dataclasses.replace(release.data, **phantoms)
    assert run.training.epochs == 3 and not run.training.steps


@pytest.mark.slow
def test_two_steps_of_the_published_objective_on_the_phantoms_of_the_demo(tmp_path, capsys):
    (tmp_path / "config.py").write_text(DEMO_PUBLISHED.format(data=str(tmp_path / "data")))
    assert launch.main(["launch.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]) == 0
    assert "finished after 2 steps" in capsys.readouterr().err
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    levels = ("report", "sentence", "word")
    assert all(0 < line[f"loss/{level}"] < 20 for line in lines for level in levels if line["split"] == "train")
    fitted = json.loads((tmp_path / "run/model/calibration.json").read_text())
    assert (fitted["records"], fitted["split"], fitted["labels"]) == (64, "validation", "records")
    assert "is fitted on phantom, split validation, 64 records" in (tmp_path / "run/model/README.md").read_text()
    page = (tmp_path / "run/report/index.html").read_text()
    assert "Reliability and selective risk" in page
    assert (tmp_path / "run/report/index.html").exists()


def test_missing_raw_files_are_named(tmp_path, capsys):
    (tmp_path / "config.py").write_text(CONFIG.format(data=str(tmp_path / "data"), raw=str(tmp_path / "nowhere")))
    assert launch.main(["launch.py", f"--config={tmp_path / 'config.py'}", f"--workdir={tmp_path / 'run'}"]) == 1
    error = capsys.readouterr().err
    assert "nowhere" in error and "raw files of pairs" in error and error.count("\n") == 1


def test_a_traceback_is_shown_only_with_debug(tmp_path):
    command = [sys.executable, str(ROOT / "launch.py"), AFLOC, f"--workdir={tmp_path}", "--config.optimizer.lr=-1"]
    done = subprocess.run([*command, "--debug"], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "Traceback" in done.stderr and not done.stdout
