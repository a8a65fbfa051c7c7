"""The text encoder against Hugging Face's BertModel with the same weights."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from afloc_jax.errors import UsageError
from afloc_jax.models.bert import Bert, BertSettings
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights.torch_names import from_torch, table
from configs.afloc import get_config

FIELDS = {
    "vocab_size": 23,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 11,
}


def twins(**fields):
    """Hugging Face's model and ours with the same float64 weights."""
    torch.manual_seed(0)
    hugging_face = BertConfig(**(FIELDS | fields), attn_implementation="eager")
    theirs = BertModel(hugging_face).double().eval()
    with torch.no_grad():
        for value in theirs.parameters():
            value.normal_(0, 0.3)
    config = get_config().model
    config.projection_dim = FIELDS["hidden_size"]
    config.image.backbone, config.image.input_size = "resnet_small", 32
    config.text.last_layers = 1
    config.text.bert = hugging_face.to_dict()  # the whole dictionary, with everything that transformers adds
    settings = ModelSettings.read(config)
    state = {row.name: np.zeros(row.shape) for row in table(settings) if row.name.startswith("img_encoder.")}
    state |= {"text_encoder.model." + name: value.numpy() for name, value in theirs.state_dict().items()}
    params = from_torch(state, settings)["params"]["text_encoder"]["bert"]
    return theirs, settings.text.structure, params


def ragged_batch():
    rng = np.random.default_rng(0)
    attend = np.arange(9) < np.array([[9], [4], [1]])
    return np.where(attend, rng.integers(1, FIELDS["vocab_size"], (3, 9)), 0), attend


@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_every_hidden_state_equals_hugging_faces(activation):
    with jax.enable_x64(True):
        theirs, settings, params = twins(hidden_act=activation)
        ids, attend = ragged_batch()
        ours = jax.jit(Bert(settings, jnp.float64, jnp.float64).apply)({"params": params}, ids, attend)
        with torch.no_grad():
            states = theirs(
                torch.from_numpy(ids), torch.from_numpy(attend.astype(np.int64)), output_hidden_states=True
            ).hidden_states
        assert len(ours) == len(states) == FIELDS["num_hidden_layers"] + 1
        for mine, other in zip(ours, states, strict=True):
            np.testing.assert_allclose(np.asarray(mine)[attend], other.numpy()[attend], rtol=1e-10, atol=1e-10)


def test_gradients_equal_hugging_faces():
    with jax.enable_x64(True):
        theirs, settings, params = twins()
        ids, attend = ragged_batch()
        module = Bert(settings, jnp.float64, jnp.float64)

        def loss_fn(params):
            return (module.apply({"params": params}, ids, attend)[-1] ** 2 * attend[..., None]).sum() * 0.5

        gradient = jax.jit(jax.grad(loss_fn))(params)
        last = theirs(torch.from_numpy(ids), torch.from_numpy(attend.astype(np.int64))).last_hidden_state
        (last**2 * torch.from_numpy(attend)[..., None]).sum().mul(0.5).backward()
        layer = theirs.encoder.layer[0]
        np.testing.assert_allclose(
            gradient["layer_0"]["query"]["kernel"].T, layer.attention.self.query.weight.grad, rtol=1e-8, atol=1e-10
        )
        np.testing.assert_allclose(
            gradient["layer_0"]["attention_norm"]["scale"],
            layer.attention.output.LayerNorm.weight.grad,
            rtol=1e-8,
            atol=1e-10,
        )
        np.testing.assert_allclose(
            gradient["position_embeddings"]["embedding"],
            theirs.embeddings.position_embeddings.weight.grad,
            rtol=1e-8,
            atol=1e-10,
        )
        # Padding is never looked at: its embedding, id 0, learns nothing (as PyTorch's padding_idx).
        assert not np.asarray(gradient["word_embeddings"]["embedding"][0]).any()


def test_dropout_acts_in_training_only_and_follows_its_random_stream():
    _, settings, params = twins(hidden_dropout_prob=0.3, attention_probs_dropout_prob=0.3)
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    ids, attend = ragged_batch()

    @partial(jax.jit, static_argnums=0)
    def states(train, seed):
        rngs = {"dropout": jax.random.key(seed)}
        return Bert(settings).apply({"params": params}, ids, attend, train=train, rngs=rngs)

    def last(train, seed):
        return states(train, seed)[-1]

    np.testing.assert_array_equal(last(False, 0), last(False, 1))
    np.testing.assert_array_equal(last(True, 0), last(True, 0))
    assert np.abs(last(True, 0) - last(True, 1)).max() > 0.01
    np.testing.assert_allclose((np.asarray(states(True, 0)[0]) == 0).mean(), 0.3, atol=0.08)


def test_bfloat16_stays_near_float32():
    _, settings, params = twins()
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    ids, attend = ragged_batch()
    full = jax.jit(Bert(settings).apply)({"params": params}, ids, attend)[-1]
    half = jax.jit(Bert(settings, jnp.bfloat16).apply)({"params": params}, ids, attend)[-1]
    assert half.dtype == jnp.bfloat16
    assert np.abs(np.asarray(half, np.float32) - full)[attend].max() < 0.05 * np.abs(full).max()


def test_the_gradient_of_a_table_in_bfloat16_adds_up_in_float32():
    """4,096 times the same word: its gradient is the sum of 4,096 small ones, at which bfloat16 would stop early."""
    settings = replace(BertSettings(**FIELDS), num_hidden_layers=1)
    ids, attend = np.ones((512, 8), np.int32), np.ones((512, 8), bool)
    direction = np.random.default_rng(0).standard_normal(settings.hidden_size).astype(np.float32)
    gradients = []
    for dtype in (jnp.float32, jnp.bfloat16):
        module = Bert(settings, dtype)
        params = Bert(settings).init(jax.random.key(0), ids[:1], attend[:1])["params"]

        def loss(params, module=module):
            return (module.apply({"params": params}, ids, attend)[0] * direction).sum()

        gradients.append(jax.jit(jax.grad(loss))(params)["word_embeddings"]["embedding"][1])
    np.testing.assert_allclose(gradients[1], gradients[0], rtol=0.05, atol=0.05 * np.abs(gradients[0]).max())


def test_more_slots_than_positions_is_refused():
    _, settings, params = twins()
    ids = np.ones((1, 12), np.int32)
    with pytest.raises(UsageError, match=r"12 token slots, but model.text.bert.max_position_embeddings is 11"):
        Bert(settings).apply({"params": params}, ids, ids > 0)
