"""Runs that are refused before anything is written."""

import pytest
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError, UserError
from afloc_jax.training import train as training
from afloc_jax.training.settings import RunConfig
from tests.training.conftest import changed, tiny_config, train

pytestmark = pytest.mark.usefixtures("memory")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("training.micro_batch", 3, "micro_batch"),
        ("data.max_tokens", 64, "max_position_embeddings"),
        ("loss.contrast_group", 4, ""),
    ],
)
def test_what_only_the_network_refuses_is_refused_before_anything_is_written(
    config, tmp_path, capsys, key, value, message
):
    """So that the mended command finds no working directory of another config."""
    changed(config, {key: value})
    if not message:
        assert train(config, tmp_path, dry_run=True) == 0
        assert capsys.readouterr().err.splitlines() == [
            "loss.low_rank is on: words are compared in 4 dimensions instead of 16",
            "tiny: the config is valid",
        ]
        return
    for dry_run in (True, False):
        with pytest.raises(UsageError, match=message) as caught:
            train(config, tmp_path, dry_run=dry_run)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.iterdir())


def test_the_training_data_themselves_may_be_evaluated(tmp_path):
    """Their records are there by the time that is checked; entries may be plain dicts."""
    config = tiny_config()
    config.data.update(dataset="phantom", directory=str(tmp_path / "data"))
    config.data.builder = ConfigDict({"train": 12, "validation": 8, "test": 4, "image_size": 32})
    config.evaluation.datasets = ({"name": "phantom", "directory": str(tmp_path / "data"), "builder": {"test": 4}},)
    training.check_evaluation(RunConfig.from_config(config))
    config.evaluation.datasets = ({"name": "pairs", "directory": str(tmp_path / "data")},)
    with pytest.raises(UserError, match="pairs: no prepared records"):
        training.check_evaluation(RunConfig.from_config(config))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"name": "rsnaa"}, UsageError, "rsnaa: unknown data set"),
        ({"name": "masks", "raw": "nowhere"}, UserError, "masks: no folder 'nowhere' with the raw files"),
        ({"name": "rsna"}, UserError, "rsna: no prepared records of 'rsna'"),
        ({"name": "phantom", "builder": {"testt": 3}}, UsageError, "phantom: phantom has no argument 'testt'"),
    ],
)
def test_evaluation_data_that_are_not_there_are_named_before_training(config, tmp_path, given, error, message):
    config.evaluation.datasets = (ConfigDict({"directory": str(tmp_path / "data"), **given}),)
    with pytest.raises(error, match=rf"^config\.evaluation\.datasets, {message}"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_split_smaller_than_the_batch_is_named(config, memory, tmp_path):
    config.training.batch_size = 32
    with pytest.raises(UsageError, match=r"batch_size = 32: split 'train' of pairs has only 24 pairs"):
        train(config, tmp_path)
