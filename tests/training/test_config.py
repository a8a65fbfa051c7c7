"""Every key and value is checked before any work, and a working directory belongs to one config."""

import functools
import json

import jax
import pytest
from ml_collections import ConfigDict

from afloc_jax.errors import UsageError
from afloc_jax.files import Path
from afloc_jax.settings import plain
from afloc_jax.training.assembly import assemble
from afloc_jax.training.config import override
from afloc_jax.training.mesh import build_mesh
from afloc_jax.training.settings import RunConfig
from afloc_jax.training.train import train
from afloc_jax.training.workdir import check_workdir, claim_workdir, differences
from configs.afloc import get_config
from configs.demo import get_config as demo_config
from configs.mimic_cxr import get_config as mimic_cxr_config
from configs.published import get_config as published_config
from configs.resolved import get_config as resolved_config
from tests.training.conftest import tiny_config

WRONG = [
    ("optimizer.lr", -1.0, "config.optimizer.lr = -1.0: must be greater than 0"),
    ("optimizer.lr", float("nan"), "config.optimizer.lr = nan: must be a finite number"),
    ("optimizer.lr", "fast", "config.optimizer.lr = 'fast': must be of type float"),
    ("optimizer.name", "muon", "config.optimizer.name = 'muon': must be one of adam, adamw, sgd, lion"),
    ("optimizer.b2", 1.0, "config.optimizer.b2 = 1.0: must be at least 0 and below 1"),
    ("optimizer.schedule", "step", "must be one of exponential, cosine, plateau, constant"),
    ("loss.attention_temperature", 0.0, "config.loss.attention_temperature = 0.0: must be greater than 0"),
    ("loss.low_rank", "fast", "config.loss.low_rank = 'fast': must be one of auto, True, False"),
    ("loss.low_rank", 1, "config.loss.low_rank = 1: must be one of auto, True, False"),
    ("loss.weights.word", -1.0, "config.loss.weights.word = -1.0: must be 0 or greater"),
    ("loss.weights", ConfigDict({"report": 0.0, "sentence": 0.0, "word": 0.0}), "nothing to learn from"),
    (
        "loss.contrast_group",
        48,
        "config.loss.contrast_group = 48: must be 0 (the whole batch) or a divisor of the batch, 128",
    ),
    ("model.image.statistics_group", 48, "config.model.image.statistics_group = 48: must be 0 (the whole batch) or a"),
    ("training.batch_size", 100, "must be a multiple of the number of devices, 8"),
    ("training.batch_size", True, "config.training.batch_size = True: must be of type int"),
    ("training.precision", "float16", "must be one of float32, bfloat16"),
    ("training.epochs", 0, "set one of them above 0"),
    ("training.keep_best", 0, "config.training.keep_best = 0: must be greater than 0"),
    ("training.learning_rate", 1.0, "config.training.learning_rate: unknown key; known: batch_size, epochs"),
    ("optimiser", ConfigDict(), "config.optimiser: unknown key; did you mean optimizer?"),
    ("optimizer", 3, "config.optimizer = 3: must be a section"),
    ("data.sentences", "some", "must be one of subset, impression, all"),
    ("model.image.backbone", "vgg", "config.model.image.backbone = 'vgg': must be one of resnet18"),
    ("model.projection_dim", 512, "config.model.projection_dim = 512: model.text.bert.hidden_size is 768"),
    ("evaluation.datasets", (ConfigDict({"name": "masks"}),), "config.evaluation.datasets[0].directory: missing"),
    (
        "evaluation.datasets",
        (ConfigDict({"name": "masks", "directory": "d", "protocol": "x"}),),
        "unknown protocol 'x'",
    ),
]


def changed(key, value):
    config = get_config()
    section, _, last = key.rpartition(".")
    target = config
    for part in section.split(".") if section else ():
        target = target[part]
    with config.unlocked(), target.ignore_type():
        target[last] = value
    return config


def run_config(key="name", value="afloc"):
    return RunConfig.from_config(changed(key, value))


@pytest.mark.parametrize(("key", "value", "message"), WRONG, ids=[f"{key}={value}"[:40] for key, value, _ in WRONG])
def test_a_wrong_value_is_named_with_what_is_allowed(key, value, message):
    with pytest.raises(UsageError) as caught:
        run_config(key, value).check_batch(8)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2


def test_the_low_rank_word_level_needs_a_plain_projection():
    run_config("loss.low_rank", True)
    config = changed("loss.low_rank", True)
    config.model.image.center = True
    with pytest.raises(UsageError, match=r"low_rank = True: needs model\.image\.center = False"):
        RunConfig.from_config(config)


@pytest.mark.parametrize(("get", "on"), [(get_config, True), (mimic_cxr_config, True), (demo_config, False)])
def test_auto_takes_the_word_level_of_low_rank_where_the_published_network_is_trained(get, on):
    config = RunConfig.from_config(get())
    run = assemble(config, build_mesh(jax.devices()[:1]))
    assert config.loss.low_rank == "auto" and run.config.loss.low_rank is on
    assert run.config.loss.is_low_rank is run.low_rank.on is on
    told = "loss.low_rank is on: words are compared in 512 dimensions instead of 768"
    assert str(run.low_rank) == (told if on else "loss.low_rank is off: the word level has no weight")


BY_UNIT = {"loss.region_pooling": "logsumexp", "loss.contrast_unit": "unit"}
OFF = [
    ({"loss.implementation": "definition"}, "it needs loss.implementation = 'tiled' or 'ring', not 'definition'"),
    (BY_UNIT, "it needs loss.contrast_unit = 'caption'"),
    ({"loss.weights.word": 0.0}, "the word level has no weight"),
    ({"model.image.center": True}, "it needs model.image.center = False"),
    ({"model.normalize": True}, "it needs model.normalize = False"),
]


@pytest.mark.parametrize(("changes", "why"), OFF, ids=[next(reversed(changes)) for changes, _ in OFF])
def test_auto_leaves_low_rank_off_where_it_cannot_be(changes, why):
    config = get_config()
    for key, value in changes.items():
        override(config, key, value)
    found = RunConfig.from_config(config).low_rank(512)
    assert not found.on and found.why == why


@pytest.mark.parametrize(("features", "on"), [(767, True), (768, False), (1024, False)])
def test_auto_takes_low_rank_only_where_the_projection_widens(features, on):
    found = RunConfig().low_rank(features)
    assert found.on is on
    assert on or found.why == f"the shallow map has {features} features, not fewer than the shared width 768"


@pytest.mark.parametrize(("given", "stored"), [(True, True), ("true", True), ("True", True), ("false", False)])
def test_low_rank_may_be_stated_as_a_boolean_or_its_name(given, stored):
    config = run_config("loss.low_rank", given)
    assert config.loss.low_rank is stored
    assert config.low_rank(2048).on is stored  # no rule of "auto" applies; the loss itself refuses what is impossible
    assert json.dumps(config.plain()["loss"]["low_rank"]) == str(given).lower()


def test_the_published_config_file_states_every_setting_and_the_defaults():
    """One truth: what configs/afloc.py comments on is what a key that is left out amounts to."""
    stated = get_config()
    assert RunConfig.from_config(stated) == RunConfig.from_config({}) == RunConfig()
    assert plain(stated) == RunConfig().plain()


def test_the_published_recipe_and_options_of_colleagues_pass():
    run_config().check_batch(8)
    assert run_config("optimizer.lr", 1).optimizer.lr == 1.0  # an int is a number too
    run_config("data.augment", True)
    assert run_config("data.builder", ConfigDict({"anything": (1, 2)})).data.builder == {"anything": [1, 2]}


def test_mimic_cxr_departs_from_afloc_in_its_data_alone_and_is_scored_where_its_records_lie():
    config = mimic_cxr_config()
    RunConfig.from_config(config).check_batch(8)
    assert set(differences(RunConfig.from_config(config).plain(), RunConfig().plain())) == {"name", "data.dataset"}
    config.data.directory = "elsewhere"
    scored = RunConfig.from_config(config).plain()["evaluation"]["datasets"]
    assert [entry["name"] for entry in scored] == ["ms_cxr", "rsna"]
    assert {entry["directory"] for entry in scored} == {"elsewhere"}


def test_published_departs_from_afloc_where_the_release_does_and_nowhere_else():
    """docs/training.md has a row for each of these, and nothing of this is hidden in another section."""
    config = RunConfig.from_config(published_config())
    config.check_batch(2)
    departs = {"data.sentences": "release_subset", "data.validation_sentences": "sampled"}
    departs |= {"data.validation_drop_last": True, "model.image.statistics_group": 64, "loss.contrast_group": 64}
    departs |= {"loss.contrast_group_order": "length", "training.early_stopping": 0, "name": "published"}
    departs |= {"data.grey": "cv2", "data.cleaning": "release"}
    assert departures(config) == departs
    table = (Path(__file__).parents[2] / "docs" / "training.md").read_text().split("## As published")[1]
    for key in departs.keys() - {"name"}:
        assert f"| `{key}` |" in table.split("## ")[0], key
    adamw = RunConfig.from_config(published_config("adamw"))
    assert departures(adamw) == departs | {"optimizer.name": "adamw", "optimizer.b1": 0.9}
    assert adamw.optimizer.b2 == 0.999
    with pytest.raises(UsageError, match=r"published\.py:lion: the release offers adam, adamw"):
        published_config("lion")


def departures(config):
    """Dotted key -> value, where the config differs from configs/afloc.py."""
    found = {}
    for key in differences(config.plain(), RunConfig().plain()):
        found[key] = functools.reduce(lambda section, name: section[name], key.split("."), config.plain())
    return found


REMOTE = [
    ("data.directory", "s3://bucket/data"),
    ("data.cache", "gs://bucket/cache"),
    ("data.raw", "s3://bucket/raw"),
    ("init_from", "s3://bucket/model"),
    ("init_from", ("resnet50.pth", "gs://bucket/bert")),
    ("model.text.tokenizer", "gs://bucket/tokenizer"),
    ("evaluation.datasets", (ConfigDict({"name": "masks", "directory": "s3://bucket/masks"}),)),
]


@pytest.mark.parametrize(("key", "value"), REMOTE, ids=[key for key, _ in REMOTE])
def test_remote_storage_is_refused_in_a_line(key, value):
    with pytest.raises(UsageError, match=rf"^config\.{key}.* = (gs|s3)://.*: remote storage is not supported yet"):
        run_config(key, value)


def test_a_model_on_the_hub_is_no_remote_storage():
    assert run_config("init_from", "emilyalsentzer/Bio_ClinicalBERT").init_from == "emilyalsentzer/Bio_ClinicalBERT"


def test_resolving_and_reading_back_gives_the_same_config(tmp_path):
    entry = ConfigDict({"name": "phantom", "directory": "d", "builder": {"test": 3}})
    config = run_config("evaluation.datasets", (entry,))
    (tmp_path / "config.json").write_text(json.dumps(config.plain()))
    assert RunConfig.from_config(resolved_config(str(tmp_path / "config.json"))) == config
    assert config.plain()["evaluation"]["datasets"] == [entry.to_dict()]


def test_a_config_of_an_earlier_version_is_the_same_config():
    """config.json of 35475ad, of a tiny run: the same command goes on in its working directory."""
    written = json.loads((Path(__file__).parent / "config_35475ad.json").read_text())
    config = tiny_config()
    config.loss.low_rank = False  # what it was before "auto"
    config.evaluation.calibrate = True  # the default
    assert RunConfig.from_config(written) == RunConfig.from_config(config)


def test_a_workdir_of_an_earlier_version_goes_on_unless_a_later_setting_is_changed(tmp_path):
    """data.augment_on and loss.tile_memory came after 35475ad; loss.low_rank was False there and is "auto" now."""
    written = json.loads((Path(__file__).parent / "config_35475ad.json").read_text())
    assert "augment_on" not in written["data"] and "tile_memory" not in written["loss"]
    assert written["loss"]["low_rank"] is False
    (tmp_path / "config.json").write_text(json.dumps(written))
    config = tiny_config()
    config.loss.tile_memory, config.loss.kept_memory = "64", "0"  # change nothing but speed
    for low_rank in ("auto", True, False):  # changes rounding
        config.loss.low_rank = low_rank
        check_workdir(RunConfig.from_config(config), Path(tmp_path))
    config.data.augment_on = "device"
    with pytest.raises(UsageError, match=r"another config \(data\.augment_on: there None, now 'device'\)"):
        check_workdir(RunConfig.from_config(config), Path(tmp_path))


def test_a_workdir_of_another_config_is_refused_with_the_keys_that_differ(tmp_path):
    workdir = Path(tmp_path / "run")
    claim_workdir(run_config(), workdir)
    with pytest.raises(UsageError, match=r"belongs to another config \(optimizer\.lr: there 2e-05, now 0\.5\)"):
        claim_workdir(run_config("optimizer.lr", 0.5), workdir)
    assert json.loads((workdir / "config.json").read_text())["optimizer"]["lr"] == 2e-5


def test_paths_and_logging_may_change_in_a_workdir(tmp_path):
    workdir = Path(tmp_path)
    claim_workdir(run_config(), workdir)
    for key, value in (("training.log_every", 7), ("data.directory", "elsewhere"), ("evaluation.bootstrap", 10)):
        claim_workdir(run_config(key, value), workdir)
    assert json.loads((workdir / "config.json").read_text())["evaluation"]["bootstrap"] == 10
    assert [path.name for path in workdir.iterdir()] == ["config.json"]


def test_a_workdir_that_cannot_be_made_is_refused_before_data_are_prepared():
    with pytest.raises(UsageError, match="--workdir=/dev/null/run: cannot be made a folder"):
        train(run_config(), Path("/dev/null/run"))  # its records are nowhere, which would be the next error


def test_a_workdir_that_is_a_file_or_has_a_broken_config_is_a_wrong_call(tmp_path):
    workdir = Path(tmp_path)
    (workdir / "file").write_text("")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        claim_workdir(run_config(), workdir / "file")
    with pytest.raises(UsageError, match="cannot be made a folder"):
        claim_workdir(run_config(), workdir / "file" / "run")
    (workdir / "config.json").write_text("[]")
    with pytest.raises(UsageError, match="is no config of a run"):
        claim_workdir(run_config(), workdir)
    (workdir / "config.json").write_text("{")
    with pytest.raises(UsageError, match="not valid JSON"):
        claim_workdir(run_config(), workdir)
