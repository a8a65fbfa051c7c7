"""Every key and value is checked before any work, and a working directory belongs to one config."""

import json

import pytest
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.training.config import claim_workdir, differences, from_plain, resolve, validate
from configs.afloc import get_config
from configs.mimic_cxr import get_config as mimic_cxr_config
from configs.resolved import get_config as resolved_config

WRONG = [
    ("optimizer.lr", -1.0, "config.optimizer.lr = -1.0: must be greater than 0"),
    ("optimizer.lr", float("nan"), "config.optimizer.lr = nan: must be a finite number"),
    ("optimizer.lr", "fast", "config.optimizer.lr = 'fast': must be of type float"),
    ("optimizer.name", "lion", "config.optimizer.name = 'lion': must be one of adam, adamw, sgd"),
    ("optimizer.b2", 1.0, "config.optimizer.b2 = 1.0: must be at least 0 and below 1"),
    ("optimizer.schedule", "step", "must be one of exponential, cosine, plateau, constant"),
    ("loss.attention_temperature", 0.0, "config.loss.attention_temperature = 0.0: must be greater than 0"),
    ("loss.weights.word", -1.0, "config.loss.weights.word = -1.0: must be 0 or greater"),
    ("loss.weights", ConfigDict({"report": 0.0, "sentence": 0.0, "word": 0.0}), "nothing to learn from"),
    ("loss.contrast_group", 48, "a divisor of config.training.batch_size = 128"),
    ("training.batch_size", 100, "must be a multiple of the number of devices, 8"),
    ("training.batch_size", True, "config.training.batch_size = True: must be of type int"),
    ("training.precision", "float16", "must be one of float32, bfloat16"),
    ("training.epochs", 0, "set one of them above 0"),
    ("training.keep_best", 0, "config.training.keep_best = 0: must be greater than 0"),
    ("training.learning_rate", 1.0, "config.training.learning_rate: unknown key; allowed here: batch_size"),
    ("optimiser", ConfigDict(), "config.optimiser: unknown key; allowed here: data, evaluation"),
    ("optimizer", 3, "config.optimizer = 3: must be a section"),
    ("data.sentences", "some", "must be one of subset, impression, all"),
    ("model.image.backbone", "vgg", "model.image.backbone = 'vgg': must be one of resnet18"),
    ("model.projection_dim", 512, "model.projection_dim = 512"),
    ("evaluation.datasets", (ConfigDict({"name": "masks"}),), "config.evaluation.datasets[0].directory: missing"),
    (
        "evaluation.datasets",
        (ConfigDict({"name": "masks", "directory": "d", "protocol": "x"}),),
        "unknown protocol 'x'",
    ),
]


def changed(key, value):
    config = get_config()
    *sections, last = key.split(".")
    target = config
    for section in sections:
        target = target[section]
    with config.unlocked(), target.ignore_type():
        target[last] = value
    return config


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}={value}"[:40] for key, value, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, message):
    with pytest.raises(UsageError) as caught:
        validate(changed(key, value), device_count=8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_the_low_rank_word_level_needs_a_plain_projection():
    validate(changed("loss.low_rank", True))
    config = changed("loss.low_rank", True)
    config.model.image.center = True
    with pytest.raises(UsageError, match=r"low_rank = True: needs config\.model\.image\.center = False"):
        validate(config)


def test_a_missing_key_is_named():
    config = get_config()
    del config.loss["contrast_group"]
    with pytest.raises(UsageError, match=r"config\.loss\.contrast_group: missing"):
        validate(config)


def test_the_published_recipe_and_options_of_colleagues_pass():
    validate(get_config(), device_count=8)
    validate(changed("optimizer.lr", 1))  # an int is a number too
    validate(changed("data.augment", True))
    validate(changed("data.builder", ConfigDict({"anything": (1, 2)})))


def test_mimic_cxr_departs_from_afloc_in_its_data_alone_and_is_scored_where_its_records_lie():
    config = mimic_cxr_config()
    validate(config, device_count=8)
    assert set(differences(resolve(config), resolve(get_config()))) == {"name", "data.dataset"}
    config.data.directory = "elsewhere"
    scored = resolve(config)["evaluation"]["datasets"]
    assert [entry["name"] for entry in scored] == ["ms_cxr", "rsna"]
    assert {entry["directory"] for entry in scored} == {"elsewhere"}


def test_resolving_and_reading_back_gives_the_same_config(tmp_path):
    config = changed("evaluation.datasets", (ConfigDict({"name": "phantom", "directory": "d", "builder": {"n": 3}}),))
    (tmp_path / "config.json").write_text(json.dumps(resolve(config)))
    for again in (from_plain(resolve(config)), resolved_config(str(tmp_path / "config.json"))):
        assert resolve(again) == resolve(config)
        assert again.evaluation.datasets[0].builder.n == 3
        validate(again)


def test_a_workdir_of_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    claim_workdir(get_config(), tmp_path / "run")
    with pytest.raises(UsageError, match=r"belongs to another config \(optimizer\.lr: there 2e-05, now 0\.5\)"):
        claim_workdir(changed("optimizer.lr", 0.5), tmp_path / "run")
    assert json.loads((tmp_path / "run/config.json").read_text())["optimizer"]["lr"] == 2e-5


def test_paths_and_logging_may_change_in_a_workdir(tmp_path):
    claim_workdir(get_config(), tmp_path)
    claim_workdir(changed("training.log_every", 7), tmp_path)
    claim_workdir(changed("data.directory", "elsewhere"), tmp_path)
    claim_workdir(changed("evaluation.bootstrap", 10), tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["evaluation"]["bootstrap"] == 10
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def test_a_workdir_that_is_a_file_or_has_a_broken_config_is_a_wrong_call(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        claim_workdir(get_config(), tmp_path / "file")
    with pytest.raises(UsageError, match="cannot be made a folder"):
        claim_workdir(get_config(), tmp_path / "file" / "run")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not readable as JSON"):
        claim_workdir(get_config(), tmp_path)
