"""One owner of a folder in a bucket, on a stand-in that heeds conditions of generations, and on one that does not."""

import dataclasses
import json
import os
import subprocess
import sys
import time

import pytest

from afloc_jax import buckets
from afloc_jax.claims import claim
from afloc_jax.errors import UsageError, UserError
from afloc_jax.ownership import OWNER_FILE, Owner, Ownership
from tests.emulator import UNCONDITIONAL
from tests.test_ownership import RACE, ROOT


def written(folder, **changes):
    """The object of another owner."""
    owner = dataclasses.replace(Owner.this_process(), **changes)
    assert buckets.write_if(f"{folder}/{OWNER_FILE}", json.dumps(dataclasses.asdict(owner)).encode(), 0)
    return owner


def test_the_second_is_told_who_has_a_folder_of_a_bucket_and_writes_nothing(bucket):
    with Ownership(bucket) as first:
        first.take()
        before = buckets.listing(bucket)
        assert list(before) == [OWNER_FILE]
        with Ownership(bucket) as second, pytest.raises(UsageError) as caught:
            second.take()
        assert f"another run has it (process {os.getpid()} on " in str(caught.value)
        assert buckets.listing(bucket) == before
        first.check()
    assert buckets.listing(bucket) == {}


def test_an_owner_of_this_host_that_is_gone_is_replaced_at_once_in_a_bucket(bucket, capsys):
    written(bucket, began="1")
    with Ownership(bucket) as mine:
        mine.take()
        mine.check()
    assert "which is gone" in capsys.readouterr().out


def test_an_owner_elsewhere_is_replaced_when_it_writes_its_object_no_more(bucket, capsys):
    written(bucket, host="pod-7", process=12)
    with Ownership(bucket, beat=0.1, patience=0.5) as mine:
        began = time.monotonic()
        mine.take()
        assert time.monotonic() - began > 0.4
    assert "taken over from process 12 on pod-7" in capsys.readouterr().out


def test_an_owner_that_writes_its_object_again_stays_and_notices_when_it_is_replaced(bucket):
    with Ownership(bucket, beat=0.05) as mine:
        mine.take()
        path = f"{bucket}/{OWNER_FILE}"
        content, first = buckets.read_with_generation(path)
        until = time.monotonic() + 30
        while (now := buckets.read_with_generation(path)[1]) == first and time.monotonic() < until:
            time.sleep(0.02)
        assert now != first
        assert not buckets.remove_if(path, first), "who judged an earlier state removes nothing"
        assert buckets.write_if(path, b"theirs", first) is None
        mine.check()
        buckets.file_system().pipe_file(path, content.replace(b"process", b"other"))
        with pytest.raises(UserError, match="took this folder over while this one was stopped"):
            mine.check()
    assert buckets.read_with_generation(path)[0] == content.replace(b"process", b"other")


def test_a_write_whose_answer_was_lost_is_still_the_owners(bucket, monkeypatch):
    """gcsfs repeats such a request, and its own first write refuses the second."""
    write_if = buckets.write_if

    def twice(*given):
        write_if(*given)
        return write_if(*given)

    mine = claim(bucket, OWNER_FILE)
    with monkeypatch.context() as patch:
        patch.setattr(buckets, "write_if", twice)
        assert mine.make("me") and mine.touch() and mine.touch() and mine.is_ours()
    assert mine.touch()
    mine.give_up()
    assert buckets.listing(bucket) == {} and not mine.is_ours()


@pytest.mark.parametrize("left", [None, "gone"], ids=["free", "left by a killed one"])
def test_of_many_at_once_exactly_one_gets_a_folder_of_a_bucket(bucket, emulator, left):
    if left:
        written(bucket, began="1")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RACE, bucket],
            cwd=ROOT,
            env=os.environ | emulator,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.stdout.readline() for process in processes]
    for process in processes:
        process.communicate("")
    assert sorted(answers) == ["refused\n"] * 3 + ["taken\n"]
    assert buckets.listing(bucket) == {}


def test_a_bucket_that_heeds_no_condition_is_not_guarded_and_the_user_is_told_once(bucket, capsys):
    folder = f"gs://{UNCONDITIONAL}/run"
    with Ownership(folder) as mine:
        mine.take()
        mine.take()
        mine.check()
        assert buckets.listing(folder) == {}
    told = f"{folder}: nothing keeps a second process out of this folder; start one alone\n"
    assert capsys.readouterr().out == told


@pytest.mark.parametrize(
    ("folder", "words"),
    [
        ("gs://no-bucket/run", "there is no bucket no-bucket"),
        ("gs://read-only/run", r"may not be written \(reader@example.com"),
        ("gs://forbidden/run", r"may not be read \(reader@example.com"),
    ],
)
def test_a_bucket_that_cannot_be_used_is_a_line(bucket, folder, words):
    with Ownership(folder) as mine, pytest.raises(UserError, match=words):
        mine.take()
