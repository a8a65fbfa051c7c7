"""Model folders, results and single files in a bucket, on a local stand-in for Google Cloud Storage."""

import importlib.util
import json
import logging
import os
import subprocess
import sys

import cv2
import numpy as np
import pytest

import afloc_jax
from afloc_jax import buckets
from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import (
    Path,
    absolute,
    bucket_path,
    fetched,
    hashes,
    matching,
    read_json,
    replacing_folder,
    write_json,
)
from tests.inference.conftest import folder  # noqa: F401 (a fixture)


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "a.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (90, 121), dtype=np.uint8))
    return str(path)


@pytest.fixture
def model(folder, bucket):  # noqa: F811
    """The tiny model folder, copied by hand: without the order of files that `replacing_folder` keeps."""
    for path in folder.iterdir():
        Path(path).copy(f"{bucket}/model/{path.name}")
    return f"{bucket}/model"


def ends(command, capsys, status, words):
    """The command ends with this status and one line that holds the words."""
    assert main(command) == status
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1, said


def test_a_file_is_written_listed_and_read_as_on_this_machine(bucket):
    place = bucket_path(bucket, "--workdir")
    assert not place.exists() and absolute(place) == place
    write_json(place / "a" / "b.json", {"é": 1})
    assert read_json(place / "a" / "b.json") == {"é": 1}
    assert matching(place, "*/*.json") == [place / "a" / "b.json"]
    assert [path.name for path in place.iterdir()] == ["a"]
    write_json(place / "a" / "b.json", 2)  # by another name for the list: nothing is remembered
    assert read_json(place / "a" / "b.json") == 2


@pytest.mark.parametrize("given", ["s3://bucket/run", "gs:/bucket/run", "az://a/b", "gs://", "gs:///run"])
def test_other_remote_storage_and_a_path_without_a_bucket_are_refused(given):
    with pytest.raises(UsageError, match=rf"^--workdir = {given}: (remote storage|names no bucket)"):
        bucket_path(given, "--workdir")


def test_a_missing_package_is_named_with_the_command_that_installs_it(monkeypatch):
    buckets.make_ready.cache_clear()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"^--workdir = gs://b/r: gs:// needs .* pip install \"afloc-jax\[gcs\]\"$"):
        bucket_path("gs://b/r", "--workdir")


def test_gcsfs_is_used_where_tensorflow_is_installed_too(bucket, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
    code = f"from afloc_jax.files import Path, bucket_path; Path('.').exists(); bucket_path('{bucket}').exists()"
    path = os.pathsep.join([str(tmp_path), os.getcwd()])
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("gs://no-bucket/m", "gs://no-bucket/m: there is no bucket no-bucket; create it, or correct its name"),
        ("gs://forbidden/m", "gs://forbidden/m: may not be read (reader@example.com does not have"),
        ("gs://bucket/absent", "gs://bucket/absent: no such model folder"),
    ],
)
def test_a_model_folder_that_cannot_be_read_is_one_line(bucket, place, words, image, tmp_path, capsys):
    ends(["localize", place, image, "--prompt", "edema", "--out", str(tmp_path / "o")], capsys, 1, words)
    ends(["export", place, str(tmp_path / "o"), "--format", "safetensors"], capsys, 1, words)


def test_records_in_a_bucket_are_refused_without_a_cache(folder, bucket, tmp_path, capsys):  # noqa: F811
    call = ["evaluate", str(folder), "--dataset", "phantom", "--data", f"{bucket}/data", "--out", str(tmp_path / "o")]
    ends(call, capsys, 2, f"{bucket}/data: records cannot be read at random from a bucket; add --cache=DIR, a folder")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("place", "words"),
    [("gs://no-bucket/m", "there is no bucket no-bucket"), ("gs://read-only/m", "may not be written (reader@example")],
)
def test_a_model_folder_that_cannot_be_written_is_one_line(folder, bucket, place, words, capsys):  # noqa: F811
    ends(["export", str(folder), place, "--format", "safetensors"], capsys, 1, f"{place}: {words}")


def test_a_cloud_that_cannot_be_reached_is_one_line(folder, capsys, monkeypatch):  # noqa: F811
    class Unreachable:
        def call(self, *_, **__):
            logging.getLogger("gcsfs").exception("out of retries", exc_info=OSError("a traceback"))
            raise OSError("Cannot connect to host storage.googleapis.com:443")

    buckets.make_ready()
    monkeypatch.setattr(buckets, "file_system", Unreachable)
    words = "gs://b/m: may not be read (Cannot connect to host storage.googleapis.com:443); check your credentials and"
    ends(["export", str(folder), "gs://b/m", "--format", "safetensors"], capsys, 1, words)


def test_a_folder_is_not_read_while_it_is_written_and_a_failure_leaves_it_incomplete(bucket, monkeypatch):
    target = bucket_path(bucket)

    def write(content):
        with replacing_folder(target, marker="config.json") as temporary:
            for name in content:
                (temporary / name).write_text(content[name])

    write({"config.json": "1", "weights": "old", "vocab.txt": "old"})
    assert {name: (target / name).read_text() for name in buckets.listing(bucket)} == {
        "config.json": "1", "vocab.txt": "old", "weights": "old",
    }  # fmt: skip
    with pytest.raises(ValueError), replacing_folder(target, marker="config.json"):
        raise ValueError
    assert (target / "config.json").read_text() == "1"

    put, seen = buckets.file_system().put_file, []

    def killed_at_the_second(source, place):
        seen.append((os.path.basename(place), sorted(buckets.listing(bucket))))
        if len(seen) == 2:
            raise KeyboardInterrupt
        put(source, place)

    monkeypatch.setattr(buckets.file_system(), "put_file", killed_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        write({"config.json": "2", "weights": "new", "card": "new"})
    # The marker and the old vocabulary are gone from the start.
    assert seen == [("card", [".writing", "weights"]), ("weights", [".writing", "card", "weights"])]
    monkeypatch.undo()


def test_a_folder_is_fetched_once_and_again_where_it_has_changed(bucket, monkeypatch):
    write_json(f"{bucket}/m/config.json", 1)
    write_json(f"{bucket}/m/sub/weights", 2)
    copy, copied = fetched(f"{bucket}/m"), []
    assert {name: read_json(copy / name) for name in hashes(copy)} == {"config.json": 1, "sub/weights": 2}
    download = buckets.download
    monkeypatch.setattr(buckets, "download", lambda source, *rest: (copied.append(source), download(source, *rest)))
    assert fetched(f"{bucket}/m") == copy and not copied
    write_json(f"{bucket}/m/config.json", 3)
    assert read_json(fetched(f"{bucket}/m") / "config.json") == 3 and copied == [f"{bucket}/m/config.json"]


def test_a_copy_that_arrives_damaged_is_refused(bucket, tmp_path):
    write_json(f"{bucket}/a", 1)
    stated = buckets.listing(bucket)["a"]
    with pytest.raises(UserError, match=f"^{bucket}/a: arrived damaged, or changed while it was copied"):
        buckets.download(f"{bucket}/a", tmp_path / "a", buckets.Stored(stated.size, "crc32c:AAAAAA=="))
    assert list(tmp_path.iterdir()) == []


def test_commands_use_a_model_folder_in_a_bucket(model, folder, bucket, image, tmp_path):  # noqa: F811
    assert main(["localize", model, image, "--prompt", "effusion", "--out", str(tmp_path / "maps")]) == 0
    assert main(["classify", model, image, "--class", "edema", "--class", "nodule", "--out", f"{tmp_path}/a.csv"]) == 0
    here = afloc_jax.load(folder)
    heatmap = np.load(tmp_path / "maps/a.0.heatmap.npy")
    np.testing.assert_array_equal(heatmap, here.localize([image], ["effusion"])[0][0].heatmap)
    written = json.loads((tmp_path / "a.json").read_text())["model"]
    assert written == {"folder": model, "weights_sha256": here.weights_sha256, "trained_on": ["pairs"]}


def test_exports_and_imports_are_written_to_a_bucket_and_read_from_it(model, bucket, tmp_path, capsys):
    assert main(["export", model, f"{bucket}/export", "--format", "safetensors"]) == 0
    marker = read_json(f"{bucket}/export/export.json")
    assert marker["weights_sha256"] == afloc_jax.load(f"{bucket}/export").weights_sha256
    assert main(["export", model, f"{bucket}/export", "--format", "safetensors"]) == 0  # an export may be replaced
    bucket_path(f"{bucket}/export/export.json").unlink()
    ends(["export", model, f"{bucket}/export", "--format", "safetensors"], capsys, 2, "holds files that are no export")
    write_json(f"{bucket}/export/.writing", 0)  # as a killed export leaves it
    assert main(["export", model, f"{bucket}/export", "--format", "safetensors"]) == 0
    assert ".writing" not in buckets.listing(f"{bucket}/export")
    ends(["export", model, f"{model}/export", "--format", "safetensors"], capsys, 2, "lies in the model folder")


def test_an_evaluation_reads_a_model_and_writes_its_results_in_a_bucket(model, bucket, tmp_path, capsys):
    sizes = [flag for size in ("train=6", "validation=1", "test=4") for flag in ("--builder", size)]
    call = ["evaluate", model, "--dataset", "phantom", "--data", str(tmp_path / "data"), *sizes, "--bootstrap", "10"]
    for out in ("a", "b"):
        assert main([*call, "--out", f"{bucket}/{out}"]) == 0
    assert {"summary.json", "per_sample.csv", "report/index.html"} <= set(buckets.listing(f"{bucket}/a"))
    assert main(["compare", f"{bucket}/a", f"{bucket}/b", "--out", str(tmp_path / "compared")]) == 0
    bucket_path(f"{bucket}/a/report/index.html").unlink()
    assert main(["report", f"{bucket}/a"]) == 0
    assert "report/index.html" in buckets.listing(f"{bucket}/a")
