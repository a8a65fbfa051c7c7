"""The whole model against numbers of the published release (goldens): embeddings of both towers and the four losses."""

import importlib.util
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from afloc_jax.levels import TokenBatch
from afloc_jax.losses import LossSettings, contrastive_losses
from afloc_jax.models import build
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights.torch_names import from_torch
from configs.afloc import get_config
from data_pipelines.tokens import load_tokenizer, tokenize

# The prompts of end_to_end.json as the release tokenizes them: lower case, no periods.
CLEANED_PROMPTS = [
    "findings suggesting pneumonia",
    "small left pleural effusion",
    "no pneumothorax heart size is normal",
]


def filled(goldens, model_config, shapes_file: str, prefix: str = "", dtype=np.float32):
    """Variables whose every parameter has the value that the goldens define for its PyTorch name."""
    spec = importlib.util.spec_from_file_location("golden_fill", goldens / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = json.loads((goldens / shapes_file).read_text())
    state = {name: module.fill(prefix + name, shape) for name, shape in shapes.items()}
    state = {name: value.astype(dtype) if value.dtype == np.float32 else value for name, value in state.items()}
    return from_torch(state, ModelSettings.read(model_config))


def assert_close(actual, expected, tolerance):
    """Largest difference relative to the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="module")
def small(goldens):
    """Config, numbers and token batch of the small golden model (ResNet-50, four text layers of width 64)."""
    model_config = get_config().model
    model_config.projection_dim = 64
    model_config.text.bert = ConfigDict(json.loads((goldens / "bert" / "config.json").read_text()))
    described = json.loads((goldens / "model.json").read_text())
    numbers = dict(np.load(goldens / "model.npz"))
    arrays = tokenize(load_tokenizer(goldens / "bert"), described["reports"], described["word_num"], compatible=True)
    np.testing.assert_array_equal(arrays["token_ids"], numbers["tokens/input_ids"])
    return model_config, described, numbers, TokenBatch(**arrays)


@pytest.mark.parametrize("merge", ["sum", "mean"])
def test_text_units_equal_the_release_for_sum_and_mean(goldens, small, merge):
    model_config, described, numbers, tokens = small
    model_config = model_config.copy_and_resolve_references()
    model_config.text.merge_layers = model_config.text.merge_pieces = merge
    variables = filled(goldens, model_config, "state_dict_shapes.json")
    text = build(ModelSettings.read(model_config)).apply(variables, tokens, method="encode_text")
    assert_close(text.words.swapaxes(1, 2), numbers[f"text_{merge}/word"], 1e-5)
    assert_close(text.sentences.swapaxes(1, 2), numbers[f"text_{merge}/sent"], 1e-5)
    assert_close(text.report, numbers[f"text_{merge}/report"], 1e-5)
    for row, units in enumerate(described["sentence_units"]):
        used = sum(unit != "[PAD]" for unit in units)
        assert text.sentence_count[row] == used - 1  # all but [SEP]
        assert np.abs(text.sentences[row, used - 1]).sum() > 0
        assert not np.asarray(text.sentences[row, used:]).any()


def test_image_levels_and_losses_equal_the_release(goldens, small):
    """Computed in float64: what is left are the roundings of the release, which recorded these numbers in float32."""
    model_config, _, numbers, tokens = small
    with jax.enable_x64(True):
        variables = filled(goldens, model_config, "state_dict_shapes.json", dtype=np.float64)
        images = jnp.asarray(numbers["images"], jnp.float64)
        image, text = jax.jit(build(ModelSettings.read(model_config), jnp.float64).apply)(variables, images, tokens)
        assert image.shallow.dtype == text.words.dtype == jnp.float64
        losses = contrastive_losses(image, text, LossSettings())
    assert_close(jnp.moveaxis(image.deep, -1, 1)[:2], numbers["eval/img_local_deep"], 1e-5)
    assert_close(jnp.moveaxis(image.shallow, -1, 1)[:2, :8], numbers["eval/img_local_shallow_ch0_8"], 1e-5)
    assert_close(image.whole, numbers["eval/img_global"], 1e-5)
    assert_close(losses.total, numbers["eval/loss"], 1e-6)
    assert_close(losses.levels["report"], numbers["eval/global_report_loss"], 1e-6)
    assert_close(losses.levels["sentence"], numbers["eval/local_sent_loss"], 1e-6)
    assert_close(losses.levels["word"], numbers["eval/local_word_loss"], 1e-6)


def test_float32_image_levels_equal_the_release(goldens, small):
    model_config, _, numbers, _ = small
    variables = filled(goldens, model_config, "state_dict_shapes.json")
    encode = jax.jit(
        lambda variables, image: build(ModelSettings.read(model_config)).apply(variables, image, method="encode_image")
    )
    image = encode(variables, numbers["images"])
    assert_close(jnp.moveaxis(image.deep, -1, 1)[:2], numbers["eval/img_local_deep"], 1e-4)
    assert_close(jnp.moveaxis(image.shallow, -1, 1)[:2, :8], numbers["eval/img_local_shallow_ch0_8"], 1e-4)
    assert_close(image.whole, numbers["eval/img_global"], 1e-4)


def test_full_size_model_equals_the_release(goldens, shared_data):
    """ResNet-50 and BERT-base, from uint8 pixels and prompts to the embeddings."""
    model_config = get_config().model
    model_config.text.bert.vocab_size = 28996
    numbers = dict(np.load(goldens / "end_to_end.npz"))
    variables = filled(goldens, model_config, "state_dict_shapes_full.json", "e2e/")
    model = build(ModelSettings.read(model_config))

    pixels = np.stack([numbers[f"image{index}/pixels"] for index in range(4)])
    image = jax.jit(lambda v, x: model.apply(v, x, method="encode_image"))(variables, pixels)
    assert_close(image.whole, np.stack([numbers[f"image{index}/global"] for index in range(4)]), 1e-4)

    token_ids = np.stack([numbers[f"prompt{index}/input_ids"] for index in range(3)])
    tokenizer = load_tokenizer(shared_data / "vocab" / "bert-base-cased-vocab.txt")
    arrays = tokenize(tokenizer, CLEANED_PROMPTS, token_ids.shape[1], compatible=True)
    np.testing.assert_array_equal(arrays["token_ids"], token_ids)
    text = jax.jit(lambda v, x: model.apply(v, x, method="encode_text"))(variables, TokenBatch(**arrays))
    for index in range(3):
        assert_close(text.report[index], numbers[f"prompt{index}/report"], 1e-4)
        assert_close(text.words[index, :12].T, numbers[f"prompt{index}/words"], 1e-4)
