"""The table between PyTorch's names and ours: complete, one to one, and lossless."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference.torch_resnet import PUBLISHED, TorchImageEncoder, torch_backbone

from afloc_jax.errors import UserError
from afloc_jax.models.settings import BACKBONES, ModelSettings
from afloc_jax.models.vision_transformer import VisionTransformerStructure
from afloc_jax.weights.torch_names import from_torch, table, to_torch
from configs.afloc import get_config


def small_config(backbone="resnet18"):
    config = get_config().model
    config.projection_dim = 8
    config.image.backbone = backbone
    config.image.input_size = 112
    config.text.bert = {
        "vocab_size": 11,
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 12,
        "max_position_embeddings": 16,
    }
    return ModelSettings.read(config)


def random_state(config):
    rng = np.random.default_rng(0)
    return {row.name: rng.standard_normal(row.shape, np.float32) for row in table(config)}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_every_array_has_one_name_and_comes_back_from_it(backbone):
    """Shapes only: nothing of the model is computed."""
    rows, structure = table(small_config(backbone)), BACKBONES[backbone].structure
    assert len({row.name for row in rows}) == len({row.path for row in rows}) == len(rows)
    for row in rows:
        if len(row.shape) > 1 and row.layout != "same":
            assert row.to_torch(row.from_torch(np.broadcast_to(0.0, row.shape))).shape == row.shape
    collections = {row.path[0] for row in rows}
    has_statistics = not isinstance(structure, VisionTransformerStructure)
    assert collections == {"params", "batch_stats"} if has_statistics else {"params"}


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_image_names_and_shapes_equal_torchvisions(backbone):
    import torch

    with torch.device("meta"):
        theirs = TorchImageEncoder(torch_backbone(backbone), 8).state_dict()
    expected = {
        "img_encoder." + name: tuple(value.shape)
        for name, value in theirs.items()
        if not name.endswith("num_batches_tracked")
    }
    ours = {row.name: row.shape for row in table(small_config(backbone)) if row.name.startswith("img_encoder.")}
    assert ours == expected


@pytest.mark.parametrize("file, vocab_size", [("state_dict_shapes_full.json", 28996), ("state_dict_shapes.json", 164)])
def test_names_and_shapes_equal_those_of_the_published_model(goldens, file, vocab_size):
    published = {name: tuple(shape) for name, shape in json.loads((goldens / file).read_text()).items()}
    config = get_config().model
    if file == "state_dict_shapes.json":
        config.text.bert = json.loads((goldens / "bert" / "config.json").read_text())
        config.projection_dim = 64
    config.text.bert.vocab_size = vocab_size
    counters = {name: shape for name, shape in published.items() if name.endswith("num_batches_tracked")}
    assert {row.name: row.shape for row in table(ModelSettings.read(config))} | counters == published


def test_text_names_and_shapes_equal_those_of_hugging_face():
    import torch
    from transformers import BertConfig, BertModel

    config = small_config()
    with torch.device("meta"):
        theirs = BertModel(BertConfig(**config.text.bert)).state_dict()
    expected = {
        "text_encoder.model." + name: tuple(v.shape) for name, v in theirs.items() if "position_ids" not in name
    }
    ours = {row.name: row.shape for row in table(config) if row.name.startswith("text_encoder.")}
    assert ours == expected


def test_import_then_export_is_bit_identical():
    config = small_config()
    state = random_state(config)
    extra = {
        "text_encoder.model.embeddings.position_ids": np.arange(16)[None],
        "img_encoder.model.bn1.num_batches_tracked": 7,
    }
    extra["img_encoder.local_f_embedder.weight"] = np.zeros((8, 512, 1, 1))
    exported = to_torch(from_torch(state | extra, config), config)
    assert exported["img_encoder.model.bn1.num_batches_tracked"] == 0
    assert exported["img_encoder.model.bn1.num_batches_tracked"].dtype == np.int64
    for name, value in state.items():
        assert exported[name].dtype == value.dtype
        assert exported[name].flags.c_contiguous
        np.testing.assert_array_equal(exported[name], value)
    counters = {name for name in exported if name.endswith("num_batches_tracked")}
    assert exported.keys() - counters == state.keys()
    assert len(counters) == sum(name.endswith("running_var") for name in state)


def test_an_exported_state_dict_loads_strictly_into_torch():
    import torch

    config = small_config()
    exported = to_torch(from_torch(random_state(config), config), config)
    model = TorchImageEncoder(torch_backbone("resnet18"), 8)
    prefix = "img_encoder."
    state = {name.removeprefix(prefix): torch.from_numpy(v) for name, v in exported.items() if name.startswith(prefix)}
    model.load_state_dict(state, strict=True)


def test_float64_stays_and_half_precision_becomes_float32():
    config = small_config()
    state = random_state(config)
    for given, expected in ((np.float64, np.float64), (np.float16, np.float32), (jnp.bfloat16, np.float32)):
        variables = from_torch({name: value.astype(given) for name, value in state.items()}, config)
        assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(expected)}


def test_missing_unexpected_and_misshapen_names_are_listed_with_their_shapes():
    config = small_config()
    state = random_state(config)
    del state["img_encoder.global_embedder.bias"]
    state["img_encoder.model.fc.weight"] = np.zeros((1000, 512))
    state["text_encoder.model.pooler.dense.bias"] = np.zeros(9)
    with pytest.raises(UserError) as caught:
        from_torch(state, config)
    message = str(caught.value)
    assert "missing: img_encoder.global_embedder.bias [8]" in message
    assert "unexpected: img_encoder.model.fc.weight [1000, 512]" in message
    assert "of another shape: text_encoder.model.pooler.dense.bias [9] instead of [8]" in message
    assert "\n" not in message


def test_variables_of_another_model_are_refused():
    variables = from_torch(random_state(small_config("resnet18")), small_config("resnet18"))
    with pytest.raises(UserError, match=r"missing: .*layer1_2.* and .* more"):
        to_torch(variables, small_config("resnet34"))
