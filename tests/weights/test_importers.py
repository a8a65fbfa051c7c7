"""Foreign weights into model folders: what they hold arrives bit for bit, and what they lack is named."""

import importlib.util
import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from foreign_weights import (
    assert_holds,
    bert_config,
    checkpoint,
    omegaconf,
    tokenizer_folder,
    whole_state,
)
from reference.torch_resnet import TorchImageEncoder, torch_backbone
from safetensors.numpy import load_file
from transformers import BertModel

import afloc_jax
from afloc_jax.files import sha256_of
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights import sources
from afloc_jax.weights.folder import load_model, read_config
from afloc_jax.weights.importers import import_model
from afloc_jax.weights.torch_names import table
from configs.afloc import get_config
from data_pipelines.tokens import tokenize


def test_a_released_checkpoint_becomes_a_folder_with_its_own_settings(released, tmp_path):
    path, state, words = released
    report = import_model(path, tmp_path / "model", words)
    assert_holds(tmp_path / "model", {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")})
    config = read_config(tmp_path / "model")
    assert config.architecture.image.backbone == "resnet18"
    text = config.architecture.text.plain()
    expected = {"last_layers": 2, "merge_layers": "mean", "merge_pieces": "mean", "freeze": True}
    assert {key: text[key] for key in expected} == expected
    assert config.name == "published" and config.prompts.max_tokens == 24
    assert config.preprocessing.image_size == 224
    assert report.missing == () and report.left_out == ("img_encoder.local_f_embedder.weight",)
    assert any("assumed: 1 attention head" in note for note in report.notes)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "released.ckpt" in card and sha256_of(path) in card and "local_f_embedder" in card
    assert str(tmp_path) not in card  # where the file lay is nobody's business
    assert "trained contrastively on pairs" in card and "Train it before use" not in card


def test_import_then_save_then_import_is_bit_identical(released, tmp_path):
    path, _, words = released
    import_model(path, tmp_path / "one", words)
    again = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / "one" / "model.safetensors").items()}
    import_model(checkpoint(tmp_path / "again.ckpt", again), tmp_path / "two", words)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    assert read_config(tmp_path / "one").architecture == read_config(tmp_path / "two").architecture


def test_the_imported_text_encoder_computes_what_berts_own_code_does(released, tmp_path):
    path, state, words = released
    config = bert_config(attn_implementation="eager")
    (words / "config.json").write_text(config.to_json_string())
    import_model(path, tmp_path / "model", words)
    stored, variables, tokenizer = load_model(tmp_path / "model")
    assert stored.architecture.text.structure.num_attention_heads == 4  # from the config.json beside the vocabulary
    theirs = BertModel(config).eval()
    prefix = "text_encoder.model."
    theirs.load_state_dict({n.removeprefix(prefix): v for n, v in state.items() if n.startswith(prefix)})
    arrays = tokenize(tokenizer, ["small left effusion", "no nodules"], 8)
    with torch.no_grad():
        ids = torch.from_numpy(arrays["token_ids"]).long()
        states = theirs(ids, torch.from_numpy(arrays["word_ids"] >= 0).long(), output_hidden_states=True).hidden_states
    expected = torch.stack(states[-2:]).mean(0).numpy()
    found = build(stored.architecture).apply(variables, TokenBatch(**arrays), method="encode_text")
    np.testing.assert_allclose(found.words[0, :5], expected[0, :5], atol=1e-5)  # each word is one piece there


def test_a_gloria_checkpoint_localises_with_what_it_has(tmp_path):
    state = whole_state(shallow=False)
    words = tokenizer_folder(tmp_path / "words")
    report = import_model(checkpoint(tmp_path / "g.ckpt", state, "gloria."), tmp_path / "model", words)
    assert report.missing == ("img_encoder.local2_embedder.weight",)
    assert any("shallow level" in note for note in report.notes)
    assert "GLoRIA" in report.imported[0]
    card = (tmp_path / "model" / "README.md").read_text()
    assert "img_encoder.local2_embedder.weight" in card and "shallow level" in card
    text = read_config(tmp_path / "model").architecture.text
    assert (text.merge_layers, text.merge_pieces) == ("mean", "sum")

    model = afloc_jax.load(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    found = model.localize([image], ["small left effusion"])[0][0]
    assert found.heatmap.shape == (90, 70) and np.isfinite(found.heatmap).all() and found.heatmap.std() > 0
    reference = TorchImageEncoder(torch_backbone("resnet18"), 32).eval()
    reference.load_state_dict({n.removeprefix("img_encoder."): v for n, v in whole_state().items() if "img_" in n})
    deep = np.asarray(model.embed_images([image]).deep[0])
    square = torch.from_numpy((np.asarray(model.square_of(image)[0], np.float32) / 255 - 0.5) / 0.5)
    with torch.no_grad():
        big = torch.nn.functional.interpolate(square[None, None], (299, 299), mode="bilinear", align_corners=True)
        theirs = reference(big.expand(-1, 3, -1, -1))[1][0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(deep, theirs, atol=1e-4 * np.abs(theirs).max())


def test_missing_values_are_those_of_a_fresh_model_of_the_same_seed(tmp_path):
    words = tokenizer_folder(tmp_path / "words")
    path = checkpoint(tmp_path / "g.ckpt", whole_state(shallow=False), "gloria.")
    import_model(path, tmp_path / "model", words, seed=5)
    stored, variables, _ = load_model(tmp_path / "model")
    like = TokenBatch(*(jnp.zeros(shape, jnp.int32) for shape in ((1, 4), (1, 4), (1, 4), (1,), (1,))))
    initialise = jax.jit(build(stored.architecture).init, compiler_options={"xla_backend_optimization_level": 0})
    fresh = initialise(jax.random.key(5), jnp.zeros((1, 32, 32), jnp.uint8), like)
    name = "project_shallow"
    np.testing.assert_array_equal(
        variables["params"]["image_encoder"][name]["kernel"], fresh["params"]["image_encoder"][name]["kernel"]
    )


# The published numbers


def published_state(goldens, shapes_file, prefix):
    spec = importlib.util.spec_from_file_location("golden_fill", goldens / "fill.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    shapes = json.loads((goldens / shapes_file).read_text())
    return OrderedDict((n, torch.from_numpy(np.asarray(module.fill(prefix + n, shape)))) for n, shape in shapes.items())


def close(actual, expected, tolerance=1e-4):
    actual, expected = np.asarray(actual), np.asarray(expected)
    return actual.shape == expected.shape and np.abs(actual - expected).max() <= tolerance * np.abs(expected).max()


def test_the_published_state_dict_gives_the_published_embeddings(goldens, tmp_path):
    state = published_state(goldens, "state_dict_shapes.json", "")
    config = omegaconf()
    config.model.vision.model_name = "resnet_50"
    config.model.text.update(last_n_layers=4, aggregate_method="sum")
    import_model(checkpoint(tmp_path / "p.ckpt", state, config=config), tmp_path / "model", goldens / "bert")
    assert_holds(tmp_path / "model", {n: v for n, v in state.items() if v.is_floating_point()})
    stored, variables, tokenizer = load_model(tmp_path / "model")
    described, numbers = json.loads((goldens / "model.json").read_text()), np.load(goldens / "model.npz")
    arrays = tokenize(tokenizer, described["reports"], described["word_num"], compatible=True)
    model = build(stored.architecture)
    text = model.apply(variables, TokenBatch(**arrays), method="encode_text")
    assert close(text.words.swapaxes(1, 2), numbers["text_sum/word"])
    assert close(text.sentences.swapaxes(1, 2), numbers["text_sum/sent"])
    assert close(text.report, numbers["text_sum/report"])
    image = jax.jit(lambda v, x: model.apply(v, x, method="encode_image"))(variables, numbers["images"])
    assert close(jnp.moveaxis(image.deep, -1, 1)[:2], numbers["eval/img_local_deep"])
    assert close(image.whole, numbers["eval/img_global"])


@pytest.mark.slow
def test_the_full_size_checkpoint_gives_the_published_heat_maps(goldens, shared_data, tmp_path):
    described = json.loads((goldens / "end_to_end.json").read_text())
    state = published_state(goldens, "state_dict_shapes_full.json", described["fill_prefix"])
    config = omegaconf()
    config.model.vision.model_name = "resnet_50"
    config.model.text.update(last_n_layers=4, aggregate_method="sum")
    config.data.text.word_num = 97
    vocabulary = shared_data / "vocab" / "bert-base-cased-vocab.txt"
    import_model(checkpoint(tmp_path / "full.ckpt", state, config=config), tmp_path / "model", vocabulary)
    numbers = np.load(goldens / "end_to_end.npz")
    images = [shared_data / "covid_lesions" / "images" / name for name in described["images"]]
    found = afloc_jax.load(tmp_path / "model").localize(images, described["prompts"], compatible=True)
    stride = described["heatmap_stride"]
    for number, row in enumerate(found):
        for prompt, result in enumerate(row):
            assert close(result.square[::stride, ::stride], numbers[f"image{number}/heatmap{prompt}"])


def test_the_table_covers_every_name_that_an_import_keeps():
    config = get_config().model
    assert all(sources._KNOWN.match(row.name) for row in table(ModelSettings.read(config)))
    config.image.center = True
    assert all(sources._KNOWN.match(row.name) for row in table(ModelSettings.read(config)))
