"""`config.init_from` with foreign weights: what they hold is taken, the rest is random, mismatches are named."""

import jax
import numpy as np
import pytest
import torch
from reference.torch_resnet import torch_backbone

from afloc_jax.errors import UsageError, UserError
from afloc_jax.training import start
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import load_model
from tests.training.conftest import PIECES, tiny_config, train


def started(config):
    """The config as it is trained and the variables at step 0."""
    config, found = adopted(config)
    return config, start.overlay(start.first_variables(config), found, config.model)


def adopted(config, init_from=None):
    """The config as its sources complete it, and the sources."""
    if init_from:
        config.init_from = str(init_from)
    checked = RunConfig.from_config(config)
    found = start.foreign_sources(checked)
    return start.adopt(checked, found), found


def test_training_starts_from_a_text_encoder_and_keeps_the_rest_random(bert, memory, tmp_path, capsys):
    folder, state = bert
    config = tiny_config()
    config.model.text.bert = {}
    config.init_from = str(folder)
    config.training.update(steps=1, batch_size=8)
    config.optimizer.update(lr=1e-12)
    assert train(config, tmp_path / "run") == 0
    assert "starts from bert (text encoder); random: img_encoder" in capsys.readouterr().err
    stored, variables, tokenizer = load_model(tmp_path / "run" / "model")
    assert stored.architecture.text.bert["vocab_size"] == 16 and tokenizer.get_vocab_size() == len(PIECES)
    assert stored.architecture.text.bert["num_attention_heads"] == 2
    query = variables["params"]["text_encoder"]["bert"]["layer_0"]["query"]["kernel"]
    np.testing.assert_allclose(query, state["encoder.layer.0.attention.self.query.weight"].numpy().T, atol=1e-6)
    # The same command again: finished, and nothing is trained anew.
    assert train(config, tmp_path / "run") == 0
    # A further run that starts from the model, and leaves the text encoder to it as well.
    after, sources = adopted(config, tmp_path / "run" / "model")
    after = start.with_vocabulary(after, tokenizer)
    assert not sources and after.model.text.bert == stored.architecture.text.bert
    further = start.first_variables(after)["params"]["text_encoder"]["bert"]["layer_0"]["query"]["kernel"]
    np.testing.assert_array_equal(further, query)


def test_an_image_backbone_and_a_text_encoder_start_together(bert, tmp_path):
    folder, _ = bert
    backbone = torch_backbone("resnet18")
    torch.save(backbone.state_dict(), tmp_path / "resnet18.pth", _use_new_zipfile_serialization=False)
    config = tiny_config()
    config.model.text.bert = {}
    config.model.image.backbone, config.model.image.options = "resnet18", {}
    config.init_from = (str(folder), str(tmp_path / "resnet18.pth"))
    config, (variables, told) = started(config)
    image = variables["params"]["image_encoder"]
    stem = backbone.state_dict()["conv1.weight"].numpy()
    np.testing.assert_array_equal(image["backbone"]["conv1"]["kernel"], stem.transpose(2, 3, 1, 0))
    fresh = start.first_variables(config)
    jax.tree.map(np.testing.assert_array_equal, image["project_deep"], fresh["params"]["image_encoder"]["project_deep"])
    assert "resnet18.pth (image backbone)" in told and "img_encoder.local_embedder.weight" in told


@pytest.mark.parametrize(
    "change, match",
    [
        ({"num_hidden_layers": 2}, r"config\.model\.text\.bert\.num_hidden_layers is 2: .* has 1; set it so"),
        ({"num_attention_heads": 4}, r"config\.model\.text\.bert\.num_attention_heads is 4: .* has 2"),
        ({"vocab_size": 15}, r"config\.model\.text\.bert\.vocab_size is 15: .* has 16"),
        ({"layer_norm_eps": 1e-5}, r"config\.model\.text\.bert\.layer_norm_eps is 1e-05: .* has 1e-12"),
    ],
)
def test_settings_that_contradict_the_text_encoder_are_named(bert, change, match):
    config = tiny_config()
    config.model.text.bert.update({"vocab_size": 16, **change})
    with pytest.raises(UsageError, match=match):
        adopted(config, bert[0])


def test_dropout_is_the_runs_own_choice(bert):
    config = tiny_config()
    config.model.text.bert.update({"vocab_size": 16, "hidden_dropout_prob": 0.3})
    found, _ = adopted(config, bert[0])
    assert found.model.text.structure.hidden_dropout_prob == 0.3
    assert config.model.text.tokenizer == "" and found.model.text.tokenizer == str(bert[0])


def test_a_width_that_the_config_does_not_share_is_named(bert):
    config = tiny_config()
    config.model.text.bert, config.model.projection_dim = {}, 768
    with pytest.raises(UsageError, match=r"config\.model\.projection_dim = 768: .* set it to 16"):
        adopted(config, bert[0])


def test_another_backbone_than_the_configs_is_named(tmp_path):
    torch.save(torch_backbone("resnet18").state_dict(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match=r"config\.model\.image\.backbone = 'resnet_small': .* holds a resnet18"):
        adopted(tiny_config(), tmp_path / "a.pth")


def test_a_text_encoder_without_a_tokenizer_asks_for_one(bert):
    config = tiny_config()
    with pytest.raises(UsageError, match=r"config\.model\.text\.tokenizer is empty: model\.safetensors"):
        adopted(config, bert[0] / "model.safetensors")


def test_a_start_that_does_not_exist_is_said_so_before_any_data_is_opened(tmp_path):
    config = tiny_config()
    config.init_from = str(tmp_path / "runs" / "none")
    with pytest.raises(UserError, match="no such file or folder"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("value", [3, ("a", 3), ("a", ""), {"a": "b"}])
def test_init_from_is_a_path_or_several(value):
    config = tiny_config()
    with config.ignore_type():
        config.init_from = value
    with pytest.raises(UsageError, match=r"config\.init_from"):
        RunConfig.from_config(config)
