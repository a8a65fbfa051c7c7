"""`config.data` is checked by the room that reads it."""

import pytest

from afloc_jax.errors import UsageError
from configs.afloc import get_config
from data_pipelines.settings import DataSettings


def test_the_defaults_are_those_of_the_published_config():
    assert DataSettings.read(get_config().data) == DataSettings()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"sentences": "some"}, "data.sentences = 'some': must be one of subset, impression, all"),
        ({"max_tokens": 2}, r"data.max_tokens = 2: must be 3 or greater \(\[CLS\], a word, \[SEP\]\)"),
        ({"workers": -1}, "data.workers = -1: must be 0 or greater"),
        ({"dataset": ""}, "data.dataset = ''"),
        ({"train_split": ""}, "data.train_split = ''"),
        ({"builder": "frontal"}, "data.builder = 'frontal': must be a mapping"),
        ({"augment": 1}, "data.augment = 1: must be of type bool"),
        ({"directory": "s3://bucket/data"}, "data.directory = s3://bucket/data: remote storage is not supported yet"),
        ({"raw": "s3://bucket/raw"}, "data.raw = s3://bucket/raw: remote storage is not supported yet"),
        ({"directry": "a"}, "data.directry: unknown key; did you mean directory?"),
    ],
)
def test_a_wrong_value_is_refused_with_its_key(wrong, message):
    with pytest.raises(UsageError, match=rf"^config\.{message}"):
        DataSettings.read(wrong, prefix="config.")


def test_builder_arguments_are_kept_as_they_are():
    config = get_config()
    config.data.builder = {"fractions": {"train": 1.0}, "views": ("PA", "AP")}
    assert DataSettings.read(config.data).plain()["builder"] == {"fractions": {"train": 1.0}, "views": ["PA", "AP"]}
