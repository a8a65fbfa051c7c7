"""A small model folder: half the bytes, a vocabulary of the words that are needed, and nearly the same maps."""

import json

import numpy as np
import pytest
from exports import PROMPTS, run_check
from safetensors.numpy import load_file

import afloc_jax
from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.export.write import export_model
from afloc_jax.weights.folder import load_model, save_state
from afloc_jax.weights.torch_names import to_torch
from data_pipelines.tokens import tokenize

WORDS = "small left pleural effusion\nthe heart is enlarged. no edema\n"


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.mark.parametrize("kind", ["plain", "demo"])
def test_a_small_folder_is_a_model_folder_of_half_the_bytes(models, tmp_path, kind):
    folder = export_model(models[kind], tmp_path / "small", "small")
    stored = load_file(folder / "model.safetensors")
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16), np.dtype(np.int64)}
    loaded = load_model(folder)
    whole = to_torch(load_model(models[kind]).variables, loaded.config.architecture)
    for name, array in to_torch(loaded.variables, loaded.config.architecture).items():
        assert array.dtype in (np.float32, np.int64)
        np.testing.assert_array_equal(array, whole[name].astype(stored[name].dtype).astype(array.dtype))
    side = loaded.config.preprocessing.image_size
    squares = np.random.default_rng(0).integers(0, 256, (2, side, side), np.uint8)
    maps = [afloc_jax.load(path).heatmaps_of_squares(squares, PROMPTS[:2]) for path in (folder, models[kind])]
    assert np.abs(maps[0] - maps[1]).max() < 0.01 * np.ptp(maps[1])
    done = run_check(folder)
    assert done.returncode == 0, done.stdout + done.stderr


def test_words_that_are_kept_have_the_embeddings_they_had(models, tmp_path, words):
    assert main(["export", str(models["plain"]), str(tmp_path / "s"), "--format", "small", "--words", str(words)]) == 0
    small, whole = load_model(tmp_path / "s"), load_model(models["plain"])
    assert small.tokenizer.get_vocab_size() < whole.tokenizer.get_vocab_size()
    assert small.config.architecture.text.structure.vocab_size == small.tokenizer.get_vocab_size()
    tables = [m.variables["params"]["text_encoder"]["bert"]["word_embeddings"]["embedding"] for m in (small, whole)]
    found = [
        table[tokenize(m.tokenizer, ["no left effusion"], 12)["token_ids"][0]]
        for table, m in zip(tables, (small, whole), strict=True)
    ]
    np.testing.assert_array_equal(found[0], found[1].astype(np.float16).astype(np.float32))
    assert "[UNK]" in small.tokenizer.encode("pneumonia").tokens and json.loads(
        (tmp_path / "s/config.json").read_text()
    )["architecture"]["text"]["bert"]["vocab_size"] == len(tables[0])


def test_what_cannot_be_is_said(models, tmp_path, words):
    with pytest.raises(UsageError, match="--words cuts the vocabulary of --format small; onnx keeps it"):
        export_model(models["plain"], tmp_path / "out", "onnx", [words])
    words.write_text("\n")
    with pytest.raises(UserError, match="has no word"):
        export_model(models["plain"], tmp_path / "out", "small", [words])
    config, variables, tokenizer = load_model(models["plain"])
    state = to_torch(variables, config.architecture)
    name = next(name for name in state if name.endswith("weight"))
    save_state(tmp_path / "large", {**state, name: state[name] + np.float32(1e5)}, config, tokenizer)
    with pytest.raises(UserError, match=f"{name} has values that float16 cannot hold"):
        export_model(tmp_path / "large", tmp_path / "out", "small")
