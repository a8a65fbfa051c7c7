"""Prepared records are those of the contents that are there now, whatever the times of the files say."""

import json
import os

import cv2
import numpy as np
import pytest
from raw_folders import pairs_folder

from afloc_jax.errors import UserError
from data_pipelines import prepared
from data_pipelines.building import raw_files
from data_pipelines.prepared import open_source, prepare

ALL_TRAIN = {"fractions": {"train": 1.0}}


@pytest.fixture
def folders(tmp_path):
    """A raw folder whose images lie behind a link outside of it, and the folder of records."""
    raw, outside = tmp_path / "raw", tmp_path / "outside"
    pairs_folder(raw, 4)
    (raw / "images").rename(outside)
    (raw / "images").symlink_to(outside)
    for number in range(4):
        picture(outside, number, 10 * number)
    return raw, outside, tmp_path / "out"


def picture(folder, number, grey):
    """Writes an image of one grey value. All such images have the same size in bytes."""
    cv2.imwrite(str(folder / f"{number:03d}.bmp"), np.full((20, 30), grey, np.uint8))
    (folder / f"{number:03d}.bmp").replace(folder / f"{number:03d}.png")  # the table says so; content decides


def build(raw, out, **builder):
    return prepare("pairs", out, raw=raw, builder={**ALL_TRAIN, **builder})


def greys(raw, out):
    return sorted(int(record.image.max()) for record in open_source("pairs", out, "train", raw=raw, builder=ALL_TRAIN))


def test_a_file_behind_a_link_with_another_content_of_the_same_size_and_time_is_read_again(folders, capsys):
    raw, outside, out = folders
    first = build(raw, out)
    assert first.built and not build(raw, out).built and greys(raw, out) == [0, 10, 20, 30]
    before = (outside / "001.png").stat()
    picture(outside, 1, 99)
    os.utime(outside / "001.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (outside / "001.png").stat().st_size == before.st_size
    second = build(raw, out)
    assert second.built and greys(raw, out) == [0, 20, 30, 99]
    said = capsys.readouterr().err.splitlines()
    assert "1 of 5 raw files have changed since they were read" in said and not any("001" in line for line in said)
    picture(outside, 1, 10)  # the earlier content has records already
    again = build(raw, out)
    assert (again.built, again.folder) == (False, first.folder)


def test_a_touched_or_copied_file_builds_nothing_and_is_read_once(folders, capsys, monkeypatch):
    raw, outside, out = folders
    first = build(raw, out)
    read = []
    monkeypatch.setattr(raw_files, "sha256_of", lambda path, of=raw_files.sha256_of: read.append(path.name) or of(path))
    assert not build(raw, out).built and read == []
    (outside / "002.png").touch()
    again = build(raw, out)
    assert (again.built, again.folder, read) == (False, first.folder, ["002.png"])
    assert "1 of 5 raw files have other times and the same content" in capsys.readouterr().err.splitlines()
    assert not build(raw, out).built and read == ["002.png"], "its new time is remembered"
    copy = outside.with_name("copy")
    copy.mkdir()
    for path in outside.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (raw / "images").unlink()
    (raw / "images").symlink_to(copy)
    assert not build(raw, out).built, "another folder with the same contents"
    picture(copy, 0, 77)
    assert build(raw, out).built and greys(raw, out) == [10, 20, 30, 77]


def test_a_link_that_leads_elsewhere_a_new_and_a_missing_file_are_noticed(folders, capsys):
    raw, outside, out = folders
    first = build(raw, out).folder
    assert "raw files" not in capsys.readouterr().err
    (raw / "second").symlink_to(outside)
    second = build(raw, out).folder
    said = capsys.readouterr().err.splitlines()
    assert f"the raw files are others than those of {first.name}: building records" in said
    (raw / "second").unlink()
    (raw / "second").symlink_to(raw)  # a circle ends
    third = build(raw, out).folder
    (raw / "second").unlink()
    (outside / "further.txt").write_text("")
    assert len({first, second, third, build(raw, out).folder}) == 4
    (outside / "further.txt").unlink()
    assert build(raw, out).folder == first


def test_a_list_of_patients_with_another_content_builds_and_a_touched_one_does_not(folders, tmp_path):
    raw, _, out = folders
    listed = tmp_path / "listed.txt"
    listed.write_text("nobody\n")
    assert build(raw, out, exclude=[str(listed)]).built
    listed.touch()
    assert not build(raw, out, exclude=[str(listed)]).built
    listed.write_text("noone2\n")
    assert build(raw, out, exclude=[str(listed)]).built


def test_a_file_that_changes_during_a_build_leaves_no_records(folders, monkeypatch):
    raw, outside, out = folders
    built = prepared.build

    def build_meanwhile(*arguments):
        built(*arguments)
        picture(outside, 3, 200)

    with monkeypatch.context() as patch:
        patch.setattr(prepared, "build", build_meanwhile)
        with pytest.raises(UserError, match="1 raw files changed while records were built from them; run the command"):
            build(raw, out)
    assert not list(out.glob("pairs-*"))
    assert build(raw, out).built and greys(raw, out) == [0, 10, 20, 200]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}'])
def test_a_damaged_memory_costs_a_reading_and_no_records(folders, damage):
    raw, _, out = folders
    first = build(raw, out)
    names = json.loads((out / raw_files.MEMORY).read_text())
    assert len(names) == 5 and "png" not in str(names), "no names of files"
    (out / raw_files.MEMORY).write_text(damage)
    assert (build(raw, out).folder, build(raw, out).built) == (first.folder, False)


def test_records_inside_the_raw_folder_are_no_raw_files(folders):
    raw, _, _ = folders
    assert build(raw, raw / "out").built and not build(raw, raw / "out").built
