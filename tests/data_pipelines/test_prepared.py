"""Prepared folders are built whole or not at all, and never reused for other inputs."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from published import image_file, json_file
from raw_folders import SECRET, pairs_folder
from tensorflow_datasets.proto import tf_example_pb2

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.ownership import Ownership
from data_pipelines import prepared as prepared_module
from data_pipelines import reading
from data_pipelines.batches import training_batches, training_tokenizer
from data_pipelines.building.build import OWNER
from data_pipelines.prepared import open_prepared, open_source, prepare
from data_pipelines.records import Finding, Record
from data_pipelines.settings import DataSettings
from data_pipelines.vocabulary import VocabularyRule

ALL_TRAIN = {"fractions": {"train": 1.0}}


def prepared(directory: Path) -> set[str]:
    return {path.name for path in directory.glob("*") if not path.name.startswith(".")}


def test_the_same_inputs_are_built_once_and_other_inputs_again(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    pairs_folder(raw, 6)
    first = prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    assert first.built and not prepare("pairs", out, raw=raw, builder=ALL_TRAIN, workers=2).built
    small = prepare("pairs", out, raw=raw, builder={**ALL_TRAIN, "image_size": 64})
    assert small.built and open_source("pairs", out, "train", raw=raw, builder={**ALL_TRAIN, "image_size": 64})[
        0
    ].image.shape == (64, 64)
    cv2.imwrite(str(raw / "images" / "000.png"), np.full((50, 60), 7, np.uint8))
    changed = prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    assert changed.built and len(prepared(out)) == 3
    record = open_source("pairs", out, "train", raw=raw, builder=ALL_TRAIN)[0]
    assert (record.height, record.width) == (50, 60)


def test_a_folder_of_images_apart_is_watched_like_the_raw_folder(tmp_path):
    images, raw, out = tmp_path / "jpg", tmp_path / "raw", tmp_path / "out"
    path = "files/p10/p10000032/s50414267/d1.jpg"
    image_file(images / path, 1)
    annotation = {"image_id": 1, "category_id": 1, "bbox": [2, 3, 10, 12], "label_text": "left effusion"}
    json_file(raw / "MS_CXR_Local_Alignment_v1.0.0.json", {
        "images": [{"id": 1, "path": path}], "categories": [{"id": 1, "name": "Pleural Effusion"}],
        "annotations": [annotation],
    })  # fmt: skip
    builder = {"images": str(images)}
    assert prepare("ms_cxr", out, raw=raw, builder=builder).built
    assert not prepare("ms_cxr", out, raw=raw, builder=builder).built
    image_file(images / path, 2, height=60)
    assert prepare("ms_cxr", out, raw=raw, builder=builder).built, "the image is another one"
    assert open_source("ms_cxr", out, "test", raw=raw, builder=builder)[0].height == 60
    with pytest.raises(UserError, match=r"no folder '.*absent', named by the builder argument images"):
        prepare("ms_cxr", out, raw=raw, builder={"images": str(tmp_path / "absent")})


def test_records_open_without_their_raw_folder(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    pairs_folder(raw, 6)
    prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    for builder in (ALL_TRAIN, None, {}):
        assert len(open_source("pairs", out, "train", builder=builder)) == 6
    with pytest.raises(UserError, match="no prepared records of 'pairs' with these builder arguments"):
        open_source("pairs", out, "train", builder={"seed": 3})
    with pytest.raises(UserError, match=r"no split 'test' in .*; it has train \(6\)"):
        open_source("pairs", out, "test")
    prepare("pairs", out, raw=raw, builder={**ALL_TRAIN, "image_size": 64})
    with pytest.raises(UserError, match="several preparations"):
        open_source("pairs", out, "train")


def test_records_that_lack_a_file_are_a_line(tmp_path):
    pairs_folder(tmp_path / "raw", 6)
    folder = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder=ALL_TRAIN).folder
    (lost,) = folder.glob("*/*/*-train.array_record*")
    lost.unlink()
    with pytest.raises(UserError, match=f"lacks {lost.name}; copy it back, or remove the folder and prepare again"):
        open_source("pairs", tmp_path / "out", "train", raw=tmp_path / "raw", builder=ALL_TRAIN)


def test_records_whose_files_are_damaged_are_a_line(tmp_path):
    """Whatever is in them; a shard that was cut is noticed when it is opened, one with a wrong byte when it is read."""
    pairs_folder(tmp_path / "raw", 6)
    out = tmp_path / "out"
    folder = prepare("pairs", out, raw=tmp_path / "raw", builder=ALL_TRAIN).folder

    def refused(path, content, words, use):
        kept = path.read_bytes()
        path.write_bytes(content(kept) if callable(content) else content)
        with pytest.raises(UserError, match=words) as caught:
            use()
        assert str(folder) in str(caught.value) and "prepare again" in str(caught.value)
        path.write_bytes(kept)

    def opened():
        return open_source("pairs", out, "train")

    for name in ("dataset_info.json", "features.json"):
        (path,) = folder.glob(f"*/*/{name}")
        for content in (b"", b"[]", b"{}", b"3", bytes(range(256)), lambda kept: kept[: len(kept) // 2]):
            refused(path, content, r"dataset_info\.json or features\.json is damaged", opened)
    (shard,) = folder.glob("*/*/*-train.array_record*")
    for content in (b"", lambda kept: kept[: len(kept) // 2]):
        refused(shard, content, "a file of split 'train' is damaged", opened)
    source = pickle.loads(pickle.dumps(opened()))  # as in a worker, which opens the file anew
    refused(shard, lambda kept: bytes(len(kept)), "a file of split 'train' is damaged", lambda: source[5])
    for content in (b"[]", b"3", b"{}", b'{"records": {}, "rejected": [3]}', b'{"records": {}, "x": 1}', b"{"):
        refused(folder / "build_report.json", content, "build_report", lambda: open_prepared("pairs", out))
    for content in (b"[]", b"3", b"{}", b'{"arguments": []}', b"{"):
        refused(folder / "inputs.json", content, "inputs", opened)
    assert len(opened()) == 6


def test_records_of_older_rules_are_not_taken_for_those_of_newer_ones(tmp_path, monkeypatch):
    from data_pipelines.building.ingest import FolderBuilder

    raw, out = tmp_path / "raw", tmp_path / "out"
    pairs_folder(raw, 6)
    with monkeypatch.context() as patch:
        patch.setattr(FolderBuilder, "VERSION", tfds.core.Version("1.0.0"))
        older = prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    assert open_source("pairs", out, "train").folder == older.folder, "all there is"
    with pytest.raises(
        UserError, match="no prepared records of 'pairs' with these builder arguments and of this version"
    ):
        open_source("pairs", out, "train", builder=ALL_TRAIN)
    newer = prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    assert newer.built and newer.folder != older.folder
    assert open_source("pairs", out, "train").folder == newer.folder


def test_wrong_calls_are_named(tmp_path):
    with pytest.raises(UsageError, match=r"unknown data set 'paris'; there are .*masks, .*pairs, .*phantom"):
        open_source("paris", tmp_path, "train")
    with pytest.raises(UserError, match="no folder 'absent'"):
        prepare("pairs", tmp_path, raw="absent")
    with pytest.raises(UserError, match="no folder ''"):
        prepare("pairs", tmp_path)
    (tmp_path / "file").write_text("")
    pairs_folder(tmp_path / "raw", 2)
    with pytest.raises(UserError, match="cannot write records"):
        prepare("pairs", tmp_path / "file", raw=tmp_path / "raw")


def test_a_source_travels_to_other_processes(tmp_path):
    pairs_folder(tmp_path / "raw", 4)
    source = open_source("pairs", tmp_path, "train", raw=tmp_path / "raw", builder=ALL_TRAIN)
    copy = pickle.loads(pickle.dumps(source))
    assert [record.id for record in copy] == [record.id for record in source]


def test_a_failure_inside_the_build_shows_no_report_text(tmp_path, monkeypatch):
    from data_pipelines.building import ingest

    pairs_folder(tmp_path / "raw", 4)
    monkeypatch.setattr(ingest, "pseudonym", lambda *_: object())  # TFDS cannot encode it and prints the example
    with pytest.raises(UserError, match="failed") as caught:
        prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder=ALL_TRAIN)
    shown = str(caught.value) + str(caught.value.__cause__)
    assert SECRET not in shown and SECRET.lower() not in shown
    assert not prepared(tmp_path / "out") and not list((tmp_path / "out").glob("*.building"))


_SLOW_BUILD = """
import sys, time
from data_pipelines.building import decode
read = decode.read_image
def slow(path, rule):
    print("reading", flush=True)
    time.sleep(30)
    return read(path, rule)
decode.read_image = slow
from data_pipelines.prepared import prepare
prepare("pairs", sys.argv[1], raw=sys.argv[2], builder={"fractions": {"train": 1.0}})
"""


def test_a_killed_build_leaves_nothing_that_a_rerun_trips_over(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    pairs_folder(raw, 4)
    # Printing goes to standard error: preparing keeps TFDS off standard output.
    script = _SLOW_BUILD.replace("flush=True", "flush=True, file=sys.stderr")
    root = Path(reading.__file__).resolve().parents[1]
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(out), str(raw)], stderr=subprocess.PIPE, cwd=root, text=True
    )
    assert process.stderr is not None
    while "reading" not in process.stderr.readline():
        assert process.poll() is None, "the build ended before it was killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stderr.close()
    assert not prepared(out) and list(out.glob("*.building")), "killed in the middle of the build"
    with pytest.raises(UserError, match="no prepared records"):
        open_source("pairs", out, "train")
    again = prepare("pairs", out, raw=raw, builder=ALL_TRAIN)
    assert again.built and again.report.records == {"train": 4}
    assert not list(out.glob("*.building"))


def _prepare_after_signal(out, raw, ready, results):
    ready.wait()
    results.put(prepare("pairs", out, raw=raw, builder=ALL_TRAIN).built)


def test_two_processes_build_once(tmp_path):
    pairs_folder(tmp_path / "raw", 10)
    context = multiprocessing.get_context("spawn")
    ready, results = context.Event(), context.Queue()
    arguments = (tmp_path / "out", tmp_path / "raw", ready, results)
    processes = [context.Process(target=_prepare_after_signal, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    time.sleep(0.1)
    ready.set()
    built = [results.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(30)
    assert sorted(built) == [False, True]


def test_who_finds_a_build_in_a_directory_says_whose_and_is_refused_or_waits(tmp_path, capfd):
    """By the file of owners, so that it is kept out from other hosts too."""
    pairs_folder(tmp_path / "raw", 4)
    out, built = tmp_path / "out", []
    out.mkdir()
    second = threading.Thread(
        target=lambda: built.append(prepare("pairs", out, raw=tmp_path / "raw", builder=ALL_TRAIN).built)
    )
    with Ownership(out, name=OWNER) as first:
        first.take()
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        command = ["prepare", "pairs", "--raw", str(tmp_path / "raw"), "--out", str(out), "--no_overview"]
        assert main([*command, "--builder", 'fractions={"train": 1.0}']) == 2
        refused = capfd.readouterr().err
        assert f"another run has it (process {os.getpid()} on " in refused and refused.count("\n") == 1
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        second.start()
        second.join(3)
        assert second.is_alive() and not built and not prepared(out)
    second.join(120)
    assert built == [True] and not (out / OWNER).exists()
    told = capfd.readouterr().err
    assert told.startswith(f"{out}: process {os.getpid()} on ") and told.endswith(", has it; waiting for its end\n")
    assert told.count("\n") == 1


def test_a_build_whose_directory_was_taken_over_leaves_everything_to_the_other_one(tmp_path, monkeypatch):
    """As after it was stopped for minutes: it removes nothing and gives no records."""
    pairs_folder(tmp_path / "raw", 4)
    out, build = tmp_path / "out", prepared_module.build

    def taken_over(call, folder, *rest):
        build(call, folder, *rest)
        (out / OWNER).unlink()
        (out / OWNER).write_text("{}")

    monkeypatch.setattr(prepared_module, "build", taken_over)
    with pytest.raises(UserError, match="another process took this folder over"):
        prepare("pairs", out, raw=tmp_path / "raw", builder=ALL_TRAIN)
    assert not prepared(out) and (out / OWNER).read_text() == "{}"
    assert list(out.glob("*.building/inputs.json")), "the other one's files, for all this process knows"


def test_preparing_is_silent_when_nobody_watches(tmp_path, capfd):
    pairs_folder(tmp_path / "raw", 4)
    prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder=ALL_TRAIN)
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", ""), os.linesep


def test_a_script_without_a_main_guard_builds_instead_of_waiting_for_itself(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from data_pipelines.builders.phantom import phantom_dataset_builder as module\n"
        "from data_pipelines.prepared import prepare\n"
        "module._WORTH_A_POOL = 1\n"
        "sizes = {'train': 2, 'validation': 1, 'test': 1}\n"
        f"prepared = prepare('phantom', {str(tmp_path / 'out')!r}, builder=sizes, workers=2)\n"
        "print(len(prepared.sources()['train']))\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "2"), done.stderr
    assert "if __name__" in done.stderr


class DecodedByTfds:
    """The same records, decoded by TFDS from their feature specification."""

    def __init__(self, source):
        builder = tfds.builder_from_directory(reading._versioned(source.folder))
        self._data = builder.as_data_source(source.split)

    def __len__(self):
        return len(self._data)

    def __getitem__(self, index):
        def text(value):
            return value.decode() if isinstance(value, bytes) else str(value)

        raw = self._data[index]
        side, findings = int(raw["image_size"]), raw["findings"]
        columns = zip(findings["label"], findings["prompt"], findings["mask"], findings["annotator"], strict=True)
        boxes = [[] for _ in findings["label"]]
        for number, box in zip(raw["box_findings"], raw["boxes"], strict=True):
            boxes[number].append(tuple(box.tolist()))
        labels, sections = raw["labels"], raw["sections"]
        return Record(
            id=text(raw["id"]),
            image=np.frombuffer(raw["image"], np.uint8).reshape(side, side),
            sentences=[text(sentence) for sentence in raw["sentences"]],
            impression_count=int(raw["impression_count"]),
            patient=text(raw["patient"]),
            view=text(raw["view"]),
            height=int(raw["original_height"]),
            width=int(raw["original_width"]),
            findings=[
                Finding(text(label), text(prompt), png, tuple(boxes[number]), text(annotator))
                for number, (label, prompt, png, annotator) in enumerate(columns)
            ],
            study=text(raw["study"]),
            labels={text(name): int(value) for name, value in zip(labels["name"], labels["value"], strict=True)},
            sections={text(name): text(value) for name, value in zip(sections["name"], sections["text"], strict=True)},
        )


def test_records_of_version_1_2_have_no_masks_in_original_pixels(tmp_path):
    """They were written before the records had run lengths, and stay readable."""
    source = open_source("phantom", tmp_path, "test", builder={"train": 1, "validation": 1, "test": 12})
    for index in range(len(source)):
        older = tf_example_pb2.Example.FromString(source._example(index))
        older.features.feature.pop("findings/runs", None)
        record = reading._record(older.SerializeToString())
        assert record.findings == source[index].findings
        assert {finding.runs for finding in record.findings} <= {""}


def test_records_and_batches_are_those_that_tfds_decodes(tmp_path):
    pairs_folder(tmp_path / "raw", 12)
    pairs = open_source("pairs", tmp_path, "train", raw=tmp_path / "raw", builder=ALL_TRAIN)
    phantoms = open_source("phantom", tmp_path, "test", builder={"train": 1, "validation": 1, "test": 12})
    assert any(record.findings for record in phantoms)
    for source in (pairs, phantoms):
        decoded = DecodedByTfds(source)
        for index in range(len(source)):
            ours, theirs = vars(source[index]), vars(decoded[index])
            np.testing.assert_array_equal(ours.pop("image"), theirs.pop("image"))
            assert ours == theirs
        tokenizer = training_tokenizer(source, rule=VocabularyRule(1, 1))
        found, expected = (
            training_batches(records, DataSettings(), tokenizer, batch_size=4, seed=1) for records in (source, decoded)
        )
        for step in (0, 1, 7):
            for key, array in expected.batch_at(step).items():
                np.testing.assert_array_equal(found.batch_at(step)[key], array, err_msg=key)
