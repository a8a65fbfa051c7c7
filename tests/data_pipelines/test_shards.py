"""An interrupted preparation goes on where it stopped, and gives what an uninterrupted one gives."""

import hashlib
import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from raw_folders import pairs_folder

from afloc_jax.errors import UserError
from data_pipelines.builders.pairs.pairs_dataset_builder import Builder
from data_pipelines.builders.phantom import phantom_dataset_builder, worker
from data_pipelines.building import decode, pseudonyms, shards
from data_pipelines.prepared import open_source, prepare

BUILDER = {"fractions": {"train": 0.7, "test": 0.3}, "max_bad_fraction": 0.2}
COUNT = 40


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setattr(shards, "_SMALLEST", 5)


@pytest.fixture(autouse=True)
def one_key(monkeypatch):
    """All directories get the same key, so that their records can be compared."""
    monkeypatch.setattr(pseudonyms.secrets, "token_hex", lambda length: "5e" * length)


def counted(monkeypatch, stop_after: int | None = None) -> list[str]:
    """Names of the images that are decoded from now on; the build is interrupted before one more than `stop_after`."""
    names, read = [], decode.read_image

    def read_and_count(path, rule):
        if stop_after is not None and len(names) >= stop_after:
            raise KeyboardInterrupt
        names.append(Path(path).name)
        return read(path, rule)

    monkeypatch.setattr(decode, "read_image", read_and_count)
    return names


def content(out: Path) -> list[str]:
    """Hashes of all records in order, with what the report says."""
    found = []
    for split in ("train", "test"):
        for record in open_source("pairs", out, split):
            digest = hashlib.sha256(record.image.tobytes())
            digest.update(repr((record.id, record.sentences, record.patient, record.height)).encode())
            found.append(f"{split} {digest.hexdigest()}")
    report = json.loads(next(out.glob("pairs-*/build_report.json")).read_text())
    return [*found, json.dumps(report, sort_keys=True)]


def test_an_interrupted_build_decodes_only_what_is_left(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    pairs_folder(raw, COUNT)
    for name in ("003.png", "030.png"):
        (raw / "images" / name).write_bytes(b"broken")
    prepare("pairs", tmp_path / "whole", raw=raw, builder=BUILDER)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=23)
        with pytest.raises(KeyboardInterrupt):
            prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER, workers=1)
    building = next((tmp_path / "out").glob(".pairs-*.building"))
    accounts = [json.loads(path.read_text()) for path in (building / "shards").glob("*.json")]
    finished = sum(account["records"] + len(account["rejected"]) for account in accounts)
    assert 18 < finished <= 23 and not list(building.rglob("*.writing"))
    with pytest.raises(UserError, match="no prepared records"):
        open_source("pairs", tmp_path / "out", "train")
    with monkeypatch.context() as patch:
        decoded = counted(patch)
        prepared = prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER, workers=1)
    assert prepared.built and len(decoded) == COUNT - finished
    assert content(tmp_path / "out") == content(tmp_path / "whole")
    assert [entry.image for entry in prepared.report.rejected] == ["003.png", "030.png"]
    assert not list((tmp_path / "out").glob(".*.building")) and not list((tmp_path / "out").glob("*/shards"))


def test_a_builder_works_as_any_tfds_builder_does(tmp_path):
    pairs_folder(tmp_path / "raw", COUNT)
    builder = Builder(raw=tmp_path / "raw", data_dir=tmp_path / "data", **BUILDER)
    builder.download_and_prepare()
    assert sum(len(builder.as_data_source(split)) for split in builder.info.splits) == COUNT
    left = {path.name.split("-")[0] for path in Path(builder.data_dir).iterdir()}
    assert left == {"dataset_info.json", "features.json", "pairs"}, "nothing of the journal stays"


def test_the_number_of_workers_changes_nothing(tmp_path):
    pairs_folder(tmp_path / "raw", COUNT)
    for workers in (1, 5):
        prepare("pairs", tmp_path / str(workers), raw=tmp_path / "raw", builder=BUILDER, workers=workers)
    assert content(tmp_path / "1") == content(tmp_path / "5")


def test_a_full_disk_is_named_and_costs_one_shard(tmp_path, monkeypatch):
    """ArrayRecord reports it as a RuntimeError of its own."""
    raw = tmp_path / "raw"
    pairs_folder(raw, COUNT)
    make, made = shards.ArrayRecordWriter, []

    def filling_up(path, options):
        made.append(path)
        if len(made) > 3:
            raise RuntimeError(f"INTERNAL: write() failed: No space left on device; writing {path}")
        return make(path, options)

    with monkeypatch.context() as patch:
        patch.setattr(shards, "ArrayRecordWriter", filling_up)
        with pytest.raises(UserError, match=r"cannot write records to .*: No space left on device"):
            prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER)
    assert len(list((tmp_path / "out").glob(".*.building/shards/*.json"))) == 3
    with monkeypatch.context() as patch:
        decoded = counted(patch)
        prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER)
    assert len(decoded) == COUNT - 15


def test_what_was_rejected_before_the_interruption_still_counts_against_the_limit(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    rows = pairs_folder(raw, COUNT)
    for row in rows[:6]:
        (raw / "images" / row["image"]).write_bytes(b"broken")
    builder = {"fractions": {"train": 1.0}, "max_bad_fraction": 0.2}
    with monkeypatch.context() as patch:
        counted(patch, stop_after=20)
        with pytest.raises(KeyboardInterrupt):
            prepare("pairs", tmp_path / "out", raw=raw, builder=builder, workers=1)
    prepared = prepare("pairs", tmp_path / "out", raw=raw, builder=builder)
    assert len(prepared.report.rejected) == 6 and prepared.report.records == {"train": 34}


def test_a_build_that_stops_at_broken_images_goes_on_with_a_higher_limit(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    rows = pairs_folder(raw, COUNT)
    for row in rows[20:24]:
        (raw / "images" / row["image"]).write_bytes(b"broken")
    builder = {"fractions": {"train": 1.0}}
    with pytest.raises(UserError, match=r"3 of 40 images are unusable.*raise max_bad_fraction"):
        prepare("pairs", tmp_path / "out", raw=raw, builder=builder, workers=1)
    with monkeypatch.context() as patch:
        decoded = counted(patch)
        prepared = prepare("pairs", tmp_path / "out", raw=raw, builder={**builder, "max_bad_fraction": 0.2}, workers=1)
    assert len(prepared.report.rejected) == 4 and len(decoded) == COUNT - 20, "four finished shards of five are kept"
    assert not list((tmp_path / "out").glob(".*.building"))


def test_a_shard_that_was_cut_or_belongs_to_other_items_is_made_again(tmp_path, monkeypatch):
    raw = tmp_path / "raw"
    pairs_folder(raw, COUNT)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=23)
        with pytest.raises(KeyboardInterrupt):
            prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER, workers=1)
    journal = next((tmp_path / "out").glob(".pairs-*.building")) / "shards"
    accounts = sorted(journal.glob("*.json"))
    accounts[0].write_text(accounts[0].read_text()[:20])
    accounts[1].write_text(accounts[1].read_text().replace('"key": "', '"key": "0'))
    accounts[2].with_suffix("").unlink()
    prepare("pairs", tmp_path / "out", raw=raw, builder=BUILDER)
    prepare("pairs", tmp_path / "whole", raw=raw, builder=BUILDER)
    assert content(tmp_path / "out") == content(tmp_path / "whole")


_KILLED = """
import sys, time
from data_pipelines.building import decode, pseudonyms, shards
from data_pipelines.builders.pairs.pairs_dataset_builder import Builder
shards._SMALLEST = 5
read, names = decode.read_image, []
def slow(path, rule):
    names.append(path)
    if len(names) > 12:
        print("twelve", flush=True, file=sys.stderr)
        time.sleep(30)
    return read(path, rule)
decode.read_image = slow
from data_pipelines.prepared import prepare
prepare("pairs", sys.argv[1], raw=sys.argv[2], builder={"fractions": {"train": 1.0}}, workers=1)
"""


def test_a_killed_build_goes_on(tmp_path, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    pairs_folder(raw, COUNT)
    root = Path(shards.__file__).resolve().parents[2]
    process = subprocess.Popen([sys.executable, "-c", _KILLED, out, raw], stderr=subprocess.PIPE, cwd=root, text=True)
    assert process.stderr is not None
    while "twelve" not in process.stderr.readline():
        assert process.poll() is None, "the build ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    decoded = counted(monkeypatch)
    prepared = prepare("pairs", out, raw=raw, builder={"fractions": {"train": 1.0}})
    assert prepared.report.records == {"train": COUNT} and len(decoded) == COUNT - 10


def test_an_interrupted_build_of_phantoms_draws_only_what_is_left(tmp_path, monkeypatch):
    builder = {"train": 13, "validation": 2, "test": 0, "seed": 4}
    drawn: list[tuple[str, int]] = []

    def interrupted(seed, named, varied, phantoms, stop_after=99):
        drawn.extend(phantoms)
        if len(drawn) > stop_after:
            raise KeyboardInterrupt
        return worker.records(seed, named, varied, phantoms)

    for stop_after in (8, 99):
        monkeypatch.setattr(phantom_dataset_builder, "records", partial(interrupted, stop_after=stop_after))
        with pytest.raises(KeyboardInterrupt) if stop_after == 8 else nullcontext():
            prepare("phantom", tmp_path / "out", builder=builder, workers=1)
    # One shard of five was finished; eight were drawn before, and the ninth was begun.
    assert drawn == [("train", n) for n in [*range(9), *range(5, 13)]] + [("validation", 0), ("validation", 1)]
    monkeypatch.setattr(phantom_dataset_builder, "records", worker.records)
    prepare("phantom", tmp_path / "whole", builder=builder, workers=1)
    for split in ("train", "validation"):
        pairs = zip(
            *(open_source("phantom", tmp_path / out, split, builder=builder) for out in ("out", "whole")), strict=True
        )
        assert all((a.id, a.image.tobytes(), a.sentences) == (b.id, b.image.tobytes(), b.sentences) for a, b in pairs)
