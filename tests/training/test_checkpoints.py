"""Checkpoints: what is kept, what is believed, and that damage is noticed."""

import json
import os
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.errors import UsageError, UserError
from afloc_jax.seals import NewerFormat
from afloc_jax.training import checkpoints as module
from afloc_jax.training.checkpoints import Checkpoints, damage


def state(value):
    return {"weights": jnp.full((40, 50), float(value)), "step": jnp.asarray(value, jnp.int32), "empty": {}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Steps 1 to 5 with validation losses 3, 1, 2, 4 and none; the best two and the last two are kept."""
    folder = tmp_path_factory.mktemp("run") / "checkpoints"
    checkpoints = Checkpoints(folder, keep_best=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 4.0), (5, None)):
        checkpoints.save(state(step), step, {"step": step, "best_loss": None}, loss)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of them to break."""
    return shutil.copytree(written.parent, tmp_path / "run") / "checkpoints"


def flip_a_bit(folder, name="d"):
    path = max((path for path in folder.rglob("*") if path.is_file() and path.parent.name == name), key=_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))
    return path


def _size(path):
    return path.stat().st_size


def restored(folder):
    checkpoints = Checkpoints(folder, keep_best=2)
    found = checkpoints.restore_last(state(0))
    checkpoints.close()
    return found


def test_the_best_and_the_last_two_are_kept_and_come_back(folder):
    assert Checkpoints(folder, 2).steps() == [2, 3, 4, 5]
    found, progress = restored(folder)
    np.testing.assert_array_equal(found["weights"], np.full((40, 50), 5.0, np.float32))
    assert progress == {"step": 5, "best_loss": None}
    checkpoints = Checkpoints(folder, 2)
    best, step = checkpoints.restore_best(state(0))
    checkpoints.close()
    assert step == 2 and float(best["weights"][0, 0]) == 2.0


def test_one_flipped_bit_sends_the_restore_to_the_step_before_and_nothing_is_deleted(folder, capsys):
    path = flip_a_bit(folder / "5")
    content = path.read_bytes()
    found, progress = restored(folder)
    assert progress["step"] == 4 and float(found["weights"][0, 0]) == 4.0
    message = capsys.readouterr().err
    assert f"{folder}/5 is damaged in {path.relative_to(folder / '5')}: moved to {folder}.damaged/5" in message
    assert message.count("\n") == 1
    assert Checkpoints(folder, 2).steps() == [2, 3, 4]  # so that step 5 can be written anew
    assert (folder.with_name("checkpoints.damaged") / path.relative_to(folder)).read_bytes() == content


def test_a_step_that_is_damaged_twice_is_kept_twice(folder):
    for name in ("5", "5.1"):
        flip_a_bit(folder / "5")
        checkpoints = Checkpoints(folder, 2)
        checkpoints.restore_last(state(0))
        checkpoints.save(state(5), 5, {"step": 5}, None)
        checkpoints.close()
        assert (folder.with_name("checkpoints.damaged") / name / "manifest.json").exists() and not damage(folder / "5")


def test_empty_numbered_folders_and_unsealed_steps_are_not_believed(folder, capsys):
    (folder / "9").mkdir()  # what a kill leaves: no step after 5 was ever sealed
    (folder / "5" / "manifest.json").unlink()  # step 5 was
    assert restored(folder)[1]["step"] == 4
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"checkpoint {folder}/9 was never completed: removed, going back to the one before",
        f"checkpoint {folder}/5 was never completed: moved to {folder}.damaged/5, going back to the one before",
    ]


@pytest.mark.parametrize(("change", "reason"), [("remove", "lacks"), ("add", "holds a file"), ("seal", "manifest")])
def test_missing_and_foreign_files_and_a_broken_seal_are_noticed(folder, change, reason):
    if change == "remove":
        next(path for path in (folder / "5" / "state" / "d").iterdir()).unlink()
    elif change == "add":
        (folder / "5" / "state" / "more").write_text("")
    else:
        (folder / "5" / "manifest.json").write_text("{")
    assert reason in damage(folder / "5")
    assert not damage(folder / "4")


def test_a_run_that_was_saved_does_not_start_anew_by_itself(folder):
    for step in (2, 3, 4, 5):
        (folder / str(step) / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no intact checkpoint"):
        Checkpoints(folder, 2).restore_best(state(0))
    for _ in range(2):  # all are in checkpoints.damaged by now
        with pytest.raises(UserError, match=r"step 5 was saved, but no intact .*; put one back .*--from_scratch"):
            restored(folder)
    assert sorted(path.name for path in folder.with_name("checkpoints.damaged").iterdir()) == ["2", "3", "4", "5"]
    shutil.rmtree(folder)
    with pytest.raises(UserError, match="step 5 was saved"):  # the folder is gone, the line beside it is not
        restored(folder)
    assert Checkpoints(folder, 2).restore_last(state(0), from_scratch=True) is None


def test_from_scratch_is_refused_where_a_checkpoint_is_intact(folder):
    flip_a_bit(folder / "5")
    with pytest.raises(UsageError, match=r"--from_scratch: .* holds an intact checkpoint of step 4"):
        Checkpoints(folder, 2).restore_last(state(0), from_scratch=True)
    assert restored(folder)[1]["step"] == 4


def test_a_run_that_was_never_saved_starts_anew(tmp_path):
    (tmp_path / "checkpoints" / "3").mkdir(parents=True)  # killed in its first save
    assert restored(tmp_path / "checkpoints") is None
    assert not (tmp_path / "checkpoints" / "3").exists()


def test_a_checkpoint_of_a_later_version_stays_where_it_is(folder):
    path = folder / "5" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(NewerFormat, match=r"5/manifest\.json has format_version 2, .*update afloc_jax"):
        restored(folder)
    assert Checkpoints(folder, 2).steps() == [2, 3, 4, 5]


def test_a_full_disk_is_told_before_anything_is_written(folder, monkeypatch):
    free = type("Usage", (), {"free": 8000})
    monkeypatch.setattr("afloc_jax.files.shutil.disk_usage", lambda path: free)
    checkpoints = Checkpoints(folder, 2)
    with pytest.raises(UserError, match=r"no space left on its disk for the checkpoint of step 6, which takes"):
        checkpoints.save(state(6), 6, {"step": 6}, None)  # 8,004 bytes
    free.free = 8004
    checkpoints.save(state(6), 6, {"step": 6}, None)
    checkpoints.close()
    assert restored(folder)[1]["step"] == 6


def test_a_damaged_best_gives_way_to_the_next_best(folder, capsys):
    flip_a_bit(folder / "2")
    checkpoints = Checkpoints(folder, 2)
    assert checkpoints.restore_best(state(0))[1] == 3
    checkpoints.close()
    assert "taking the next best" in capsys.readouterr().err


def test_everything_is_on_the_disk_before_it_is_sealed(tmp_path, monkeypatch):
    """The order of calls: every file of a step, then its manifest, then the note that it was sealed."""
    synced, fsync = [], os.fsync

    def noted(handle):
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder, 1)
    checkpoints.save(state(1), 1, {"step": 1}, 0.5)
    checkpoints.close()
    names = [str(path) for path in (folder / "1").rglob("*") if path.name != "manifest.json"]
    position = {name: synced.index(name) for name in [*names, str(folder / "1"), str(folder)]}
    (manifest,) = (number for number, name in enumerate(synced) if ".manifest.json." in name)
    (ledger,) = (number for number, name in enumerate(synced) if ".checkpoints.sealed.json." in name)
    assert len(names) > 5 and max(position.values()) < manifest < ledger
    assert synced.index(str(folder / "1"), manifest) < ledger  # the name of the manifest as well


def test_saving_goes_on_after_a_restore(folder):
    checkpoints = Checkpoints(folder, 2)
    checkpoints.restore_last(state(0))
    checkpoints.save(state(6), 6, {"step": 6}, 0.5)
    checkpoints.save(state(6), 6, {"step": 6}, 0.5)  # a second save of a step changes nothing
    checkpoints.close()
    assert Checkpoints(folder, 2).steps() == [2, 5, 6]
    manifest = json.loads((folder / "6" / "manifest.json").read_text())
    assert manifest["validation_loss"] == 0.5 and len(manifest["files"]) > 5


def test_a_save_returns_before_it_is_written_and_says_when_it_is(tmp_path, monkeypatch, capsys):
    may_write, hashes = threading.Event(), module.hashes
    monkeypatch.setattr(module, "hashes", lambda folder: (may_write.wait(60), hashes(folder))[1])
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state(1), 1, {"step": 1}, 0.5)
    checkpoints.poll(checkpoints.sealed())
    assert checkpoints.sealed() == 0 and not (tmp_path / "1" / "manifest.json").exists()
    assert capsys.readouterr().err == "checkpoint of step 1: saving in the background\n"
    may_write.set()
    checkpoints.close()
    assert checkpoints.sealed() == 1 and not damage(tmp_path / "1")
    assert "checkpoint of step 1: committed after " in capsys.readouterr().err


def test_a_write_that_fails_is_raised_by_the_next_poll(tmp_path, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "hashes", full)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state(1), 1, {"step": 1}, 0.5)
    with pytest.raises(OSError, match="No space left"):
        while not checkpoints.sealed():
            pass
