"""Features of a frozen image tower, kept beside the records."""

import dataclasses

import jax
import numpy as np
import pytest

from afloc_jax.errors import UsageError
from afloc_jax.training.flops import step_flops
from afloc_jax.training.frozen import with_features
from afloc_jax.training.mesh import pad_batch, place_batch
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.start import first_variables
from data_pipelines.features import FeatureFiles
from tests.training.conftest import assembled, changed, last_arrays, tiny_config, train

FROZEN = {"model.image.freeze": True}


def prepared(folder, **changes):
    """The tiny run, its first state and its data with features in `folder`."""
    run, data = assembled(changed(tiny_config(), {**FROZEN, "data.features": str(folder), **changes}))
    state = run.state(first_variables(run.config))
    return run, state, with_features(run, data, state)


def test_training_from_kept_features_equals_training_from_pixels(tmp_path, memory, steps_compiled_once, capsys):
    """A whole run with validation and checkpoints, with features that are written on the way."""
    config = changed(tiny_config(), FROZEN)
    for name, folder in (("pixels", ""), ("features", tmp_path / "kept")):
        config.data.features = str(folder)
        assert train(config, tmp_path / name) == 0
    said = capsys.readouterr().err
    assert "features of 24 images" in said and "0 were there before" in said
    wanted, found = (last_arrays(tmp_path / name) for name in ("pixels", "features"))
    assert found.keys() == wanted.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, wanted[name], rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_losses_in_chunks_and_bfloat16_are_those_of_pixels(tmp_path):
    changes = {"training.micro_batch": 4, "training.remat": "blocks", "training.precision": "bfloat16"}
    run, state, data = prepared(tmp_path, **changes)
    batch = data.batches_to_train(run.config).batch_at(0)
    like = run.batch_like()
    assert {name: array.dtype for name, array in batch.items() if name != "index"} == {
        name: one.dtype for name, one in like.items()
    }
    pixels = {name: array for name, array in batch.items() if not name.startswith("features_")}
    again = run.state(first_variables(run.config))  # a step takes its state away
    losses = [run.train_step(s, place_batch(b, run.mesh))[1] for s, b in ((state, batch), (again, pixels))]
    np.testing.assert_allclose(losses[0].named()["loss"], losses[1].named()["loss"], rtol=1e-3)


def test_other_weights_records_or_settings_have_features_of_their_own(tmp_path, capsys):
    run, state, data = prepared(tmp_path)
    folders = [data.features.folder]
    for changes in ({"seed": 2}, {"model.image.input_size": 64}, {"model.image.mean": (0.4,)}):
        folders.append(prepared(tmp_path, **changes)[2].features.folder)
    assert len({*folders}) == 4
    # What depends on the projections and the text alone has the same.
    assert prepared(tmp_path, **{"model.image.center": True})[2].features.folder == folders[0]
    capsys.readouterr()

    first = data.features.rows([0, -1])
    assert not first["features_deep"][1].any()
    spoiled = np.memmap(folders[0] / "deep.bin", np.float32, "r+")
    spoiled[:] = 7
    spoiled.flush()
    again = with_features(run, dataclasses.replace(data, features=None), state)
    assert "not what the image tower computes now; written again" in capsys.readouterr().err
    np.testing.assert_array_equal(again.features.rows([0])["features_deep"], first["features_deep"][:1])


def test_a_stopped_pass_goes_on_where_it_stopped(tmp_path, monkeypatch, capsys):
    write = FeatureFiles.write

    def stopping(files, first, *rest):
        if first >= 8:
            raise KeyboardInterrupt
        write(files, first, *rest)

    monkeypatch.setattr(FeatureFiles, "write", stopping)
    with pytest.raises(KeyboardInterrupt):
        prepared(tmp_path)
    monkeypatch.undo()
    data = prepared(tmp_path)[2]
    assert "features of 24 images, 0 MiB; 8 were there before" in capsys.readouterr().err
    assert data.features.rows([23])["features_whole"].any()


def test_padding_and_the_count_of_operations_know_features(tmp_path):
    run, _, data = prepared(tmp_path)
    padded = pad_batch(data.batches_to_validate(run.config, 0).batch_at(0), 3)
    assert len(padded["features_deep"]) == len(padded["image"]) == 9 and not padded["features_deep"][8].any()
    config = run.config
    without = dataclasses.replace(config, data=dataclasses.replace(config.data, features=""))
    assert 0 < step_flops(config, 32).pair < step_flops(without, 32).pair


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.image.freeze": False}, r"only a frozen image tower.*set model\.image\.freeze = True"),
        ({"data.augment": True}, r"augmented images have other features.*set data\.augment = False"),
    ],
)
def test_what_changes_features_is_refused(tmp_path, changes, message):
    with pytest.raises(UsageError, match=message):
        RunConfig.from_config(changed(tiny_config(), {**FROZEN, "data.features": str(tmp_path), **changes}))


def test_several_processes_read_what_one_has_written(tmp_path, monkeypatch):
    run, state, data = prepared(tmp_path)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    assert with_features(run, data, state).features == data.features
    (data.features.folder / "features.json").unlink()
    with pytest.raises(Exception, match="is not complete; several processes read features that one has written"):
        with_features(run, data, state)
