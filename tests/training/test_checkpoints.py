"""Checkpoints: what is kept, what is believed, and that damage is noticed."""

import json
import shutil
import threading

import jax.numpy as jnp
import numpy as np
import pytest

from afloc_jax.errors import UserError
from afloc_jax.training import checkpoints as module
from afloc_jax.training.checkpoints import Checkpoints, damage


def state(value):
    return {"weights": jnp.full((40, 50), float(value)), "step": jnp.asarray(value, jnp.int32), "empty": {}}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Steps 1 to 4 with validation losses 3, 1, 2 and none; the best two and the last are kept."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpoints = Checkpoints(folder, keep_best=2)
    for step, loss in ((1, 3.0), (2, 1.0), (3, 2.0), (4, None)):
        checkpoints.save(state(step), step, {"step": step, "best_loss": None}, loss)
    checkpoints.close()
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of them to break."""
    return shutil.copytree(written, tmp_path / "checkpoints")


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


def test_the_best_and_the_last_are_kept_and_come_back(folder):
    assert Checkpoints(folder, 2).steps() == [2, 3, 4]
    found, progress = restored(folder)
    np.testing.assert_array_equal(found["weights"], np.full((40, 50), 4.0, np.float32))
    assert progress == {"step": 4, "best_loss": None}
    checkpoints = Checkpoints(folder, 2)
    best, step = checkpoints.restore_best(state(0))
    checkpoints.close()
    assert step == 2 and float(best["weights"][0, 0]) == 2.0


def test_one_flipped_bit_sends_the_restore_to_the_step_before(folder, capsys):
    path = flip_a_bit(folder / "4")
    found, progress = restored(folder)
    assert progress["step"] == 3 and float(found["weights"][0, 0]) == 3.0
    message = capsys.readouterr().err
    assert f"{folder}/4 is damaged in {path.relative_to(folder / '4')}" in message and message.count("\n") == 1
    assert Checkpoints(folder, 2).steps() == [2, 3]  # so that step 4 can be written anew


def test_empty_numbered_folders_and_unsealed_steps_are_not_believed(folder, capsys):
    (folder / "9").mkdir()
    (folder / "4" / "manifest.json").unlink()
    assert restored(folder)[1]["step"] == 3
    assert capsys.readouterr().err.count("was never completed") == 2


@pytest.mark.parametrize(("change", "reason"), [("remove", "lacks"), ("add", "holds a file"), ("seal", "manifest")])
def test_missing_and_foreign_files_and_a_broken_seal_are_noticed(folder, change, reason):
    if change == "remove":
        next(path for path in (folder / "4" / "state" / "d").iterdir()).unlink()
    elif change == "add":
        (folder / "4" / "state" / "more").write_text("")
    else:
        (folder / "4" / "manifest.json").write_text("{")
    assert reason in damage(folder / "4")
    assert not damage(folder / "3")


def test_with_nothing_intact_training_starts_anew_and_best_weights_are_an_error(folder):
    for step in (2, 3, 4):
        (folder / str(step) / "manifest.json").write_text("[]")
    with pytest.raises(UserError, match="no intact checkpoint"):
        Checkpoints(folder, 2).restore_best(state(0))
    assert restored(folder) is None


def test_a_damaged_best_gives_way_to_the_next_best(folder, capsys):
    flip_a_bit(folder / "2")
    checkpoints = Checkpoints(folder, 2)
    assert checkpoints.restore_best(state(0))[1] == 3
    checkpoints.close()
    assert "taking the next best" in capsys.readouterr().err


def test_saving_goes_on_after_a_restore(folder):
    checkpoints = Checkpoints(folder, 2)
    checkpoints.restore_last(state(0))
    checkpoints.save(state(5), 5, {"step": 5}, 0.5)
    checkpoints.save(state(5), 5, {"step": 5}, 0.5)  # a second save of a step changes nothing
    checkpoints.close()
    assert Checkpoints(folder, 2).steps() == [2, 5]
    manifest = json.loads((folder / "5" / "manifest.json").read_text())
    assert manifest["validation_loss"] == 0.5 and len(manifest["files"]) > 5


def test_a_save_returns_before_it_is_written_and_says_when_it_is(tmp_path, monkeypatch, capsys):
    may_write, hashes = threading.Event(), module._hashes
    monkeypatch.setattr(module, "_hashes", lambda folder: (may_write.wait(60), hashes(folder))[1])
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

    monkeypatch.setattr(module, "_hashes", full)
    checkpoints = Checkpoints(tmp_path, 1)
    checkpoints.save(state(1), 1, {"step": 1}, 0.5)
    with pytest.raises(OSError, match="No space left"):
        while not checkpoints.sealed():
            pass
