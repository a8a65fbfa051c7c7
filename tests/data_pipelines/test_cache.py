"""Prepared records in a bucket and their copy on this machine, on a local stand-in for Google Cloud Storage."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest

from afloc_jax import buckets
from afloc_jax.errors import UsageError, UserError
from afloc_jax.files import Path, bucket_path
from afloc_jax.training.settings import RunConfig
from configs.mimic_cxr import get_config
from data_pipelines import cache as module
from data_pipelines.cache import copied
from data_pipelines.prepared import check_source, open_source, prepare
from data_pipelines.settings import DataSettings

SIZES = {"train": 6, "validation": 2, "test": 2}


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Prepared phantoms on this machine."""
    return prepare("phantom", tmp_path_factory.mktemp("here"), builder=SIZES).folder


@pytest.fixture
def there(here, bucket):
    """A copy of them in a bucket, as `gcloud storage cp --recursive` makes it."""
    buckets.upload_folder(here, f"{bucket}/{here.name}", marker="")
    return bucket_path(f"{bucket}/{here.name}")


@pytest.fixture
def downloads(monkeypatch):
    """The names of the files that are copied from the bucket."""
    seen, download = [], buckets.download

    def noted(source, target, stored):
        seen.append(Path(source).name)
        download(source, target, stored)

    monkeypatch.setattr(buckets, "download", noted)
    return seen


def files(folder):
    return {name: stored.size for name, stored in buckets.listing(os.fspath(folder)).items()}


def shards(folder):
    return sorted(path for path in Path(folder).glob("*/*/*.array_record*"))


def test_records_are_copied_once_and_read_as_on_this_machine(here, there, bucket, tmp_path, downloads):
    for _ in range(2):
        source = open_source("phantom", bucket, "train", builder=SIZES, cache=tmp_path / "cache")
        assert len(downloads) == len(files(there)) > 5
    ours = open_source("phantom", here.parent, "train", builder=SIZES)
    assert source.content_hash == ours.content_hash and len(source) == len(ours) == 6
    np.testing.assert_array_equal(source[5].image, ours[5].image)
    check_source("phantom", bucket, builder=SIZES, cache=tmp_path / "other")
    assert not (tmp_path / "other").exists()  # a check copies nothing


@pytest.mark.parametrize("harm", ["a flipped bit", "a cut", "a lost file"])
def test_a_damaged_shard_is_copied_again_and_no_other(there, tmp_path, downloads, harm):
    shard = shards(copied(there, tmp_path))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    if harm == "a lost file":
        shard.unlink()
    else:
        shard.write_bytes(bytes(content) if harm == "a flipped bit" else bytes(content[:-1]))
    downloads.clear()
    copied(there, tmp_path)
    assert downloads == [shard.name]
    assert all(
        buckets.is_intact(tmp_path / there.name / name, told) for name, told in buckets.listing(str(there)).items()
    )


def test_a_killed_copy_goes_on(there, tmp_path, downloads):
    code = f"""if True:
        from afloc_jax import buckets
        from data_pipelines.cache import copied
        from afloc_jax.files import bucket_path
        import time
        replace = __import__("os").replace
        def slow(a, b):  # the second file stays under its temporary name
            if slow.done:
                time.sleep(60)
            replace(a, b)
            slow.done = True
        slow.done = False
        buckets.os.replace = slow
        copied(bucket_path({str(there)!r}), {str(tmp_path)!r})
    """
    process = subprocess.Popen([sys.executable, "-c", code])
    while not list(tmp_path.glob("*/*/*/*.copying")) + list(tmp_path.glob("*/*.copying")) and process.poll() is None:
        time.sleep(0.02)
    time.sleep(0.2)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    copied(there, tmp_path)
    assert len(downloads) == len(files(there)) - 1
    assert not list(tmp_path.glob("*/*/*/*.copying"))


def _copy_and_count(there, cache):
    count = 0
    download = buckets.download

    def counted(*arguments):
        nonlocal count
        count += 1
        time.sleep(0.05)
        download(*arguments)

    buckets.download = counted
    copied(bucket_path(there), cache)
    return count


def test_two_processes_of_a_machine_do_not_copy_twice(there, tmp_path):
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as processes:
        counts = list(processes.map(_copy_and_count, [str(there)] * 2, [str(tmp_path)] * 2))
    assert sum(counts) == len(files(there))


def test_a_bucket_needs_a_cache_and_the_error_says_how(there, bucket, tmp_path):
    refused = "records cannot be read at random from a bucket; add {}=DIR, a folder of this machine to which they are"
    with pytest.raises(UsageError, match=f"^directory of records = {bucket}: {refused.format('--cache')}"):
        open_source("phantom", bucket, "train", builder=SIZES)
    wanted = refused.format("--config.data.cache")
    with pytest.raises(UsageError, match=f"^config.data.directory = {bucket}: {wanted}"):
        DataSettings.read({"directory": bucket}, prefix="config.")
    with pytest.raises(UsageError, match=r"^config.evaluation.datasets\[0\].directory = " + f"{bucket}: {wanted}"):
        RunConfig.from_config({"evaluation": {"datasets": [{"name": "phantom", "directory": bucket}]}})
    with pytest.raises(UsageError, match=f"^{bucket}: records in a bucket are prepared already; give no raw files"):
        open_source("pairs", bucket, "train", raw=tmp_path, cache=tmp_path)
    missing = (
        r"no prepared records of 'phantom' with these .* run: afloc prepare phantom --raw FOLDER --out DATA "
        rf"--builder test=3 && gcloud storage cp --recursive DATA/\* {bucket}$"
    )
    with pytest.raises(UserError, match=missing):
        open_source("phantom", bucket, "train", builder={"test": 3}, cache=tmp_path)
    with pytest.raises(UserError, match=r"^gs://no-bucket/data: there is no bucket no-bucket"):
        open_source("phantom", "gs://no-bucket/data", "train", builder=SIZES, cache=tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_one_line(there, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=f"^{there}: cannot be copied to {tmp_path}/file \\(Not a directory\\)"):
        copied(there, tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.buckets, "download", full)
    with pytest.raises(UserError, match=r"cannot be copied to .* \(No space left on device\)"):
        copied(there, tmp_path / "cache")


def test_data_sets_of_the_evaluation_share_the_cache_of_the_training_data(bucket):
    config = get_config()
    config.data.directory, config.data.cache = bucket, "cache"
    entries = RunConfig.from_config(config).evaluation.entries
    assert [entry.settings.cache for entry in entries] == ["cache", "cache"]
    assert all("cache" not in entry.settings.recorded() for entry in entries)  # it changes no result
    config.data.directory = "here"
    assert all("cache" not in entry for entry in RunConfig.from_config(config).evaluation.datasets)
