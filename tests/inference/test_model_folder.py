"""The model folder: what it holds, what its card says, and how a damaged one is refused."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

import afloc_jax
from afloc_jax.evaluation.run import card_index, card_tables
from afloc_jax.inference.towers import initial_variables
from afloc_jax.models.settings import ModelSettings, TextSettings
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights import torch_names
from afloc_jax.weights.config import FolderConfig
from afloc_jax.weights.folder import ModelFolderError, load_model, read_config, save_model, update_card, weights_hash
from data_pipelines.tokens import tokenize


def test_a_saved_folder_gives_back_the_same_variables_bit_for_bit(folder, model):
    config, variables, tokenizer = load_model(folder)
    expected = initial_variables(config.architecture, seed=3)
    assert jax.tree.structure(variables) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(variables), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert tokenizer.get_vocab() == model.tokenizer.get_vocab()


def test_the_weights_file_holds_float32_tensors_that_torch_reads(folder):
    from safetensors.torch import load_file

    tensors = load_file(folder / "model.safetensors")
    config, variables, _ = load_model(folder)
    expected = torch_names.to_torch(variables, config.architecture)
    assert set(tensors) == set(expected)
    for name, tensor in tensors.items():
        assert tensor.dtype == (torch.int64 if name.endswith("num_batches_tracked") else torch.float32)
        np.testing.assert_array_equal(tensor.numpy(), expected[name])


def test_transformers_finds_the_tokenizer_of_a_model_folder(folder, model):
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(folder)("Small LEFT pleural effusion")["input_ids"]
    ours = tokenize(model.tokenizer, ["small left pleural effusion"], 24)["token_ids"][0]
    assert theirs == ours[: len(theirs)].tolist()


def test_transformers_finds_the_image_processor_of_a_model_folder(folder, model, tmp_path):
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(folder)
    random, files = np.random.default_rng(0), []
    for mode, shape in (("L", (90, 121, 1)), ("RGB", (131, 77, 3)), ("I;16", (60, 60, 1)), ("RGBA", (50, 300, 4))):
        files.append(tmp_path / f"{mode[0]}{shape[2]}.png")
        pixels = random.integers(0, 65536 if mode == "I;16" else 256, shape)
        pixels = pixels.astype(np.uint16 if mode == "I;16" else np.uint8).squeeze()
        Image.fromarray(pixels).save(files[-1])
    ours = np.stack([model.square_of(file)[0] for file in files])
    for given in ([str(file) for file in files], [Image.open(file) for file in files]):
        found = processor(given, return_tensors="np")["pixel_values"]
        assert found.shape == (4, 1, model.image_size, model.image_size) and found.dtype == np.float32
        np.testing.assert_array_equal(np.rint((found[:, 0] + 1) * 127.5).astype(np.uint8), ours)
    assert processor(Image.open(files[0]), return_tensors="pt")["pixel_values"].shape[0] == 1
    processor.save_pretrained(tmp_path / "saved")
    again = AutoImageProcessor.from_pretrained(tmp_path / "saved")(str(files[1]), return_tensors="np")
    np.testing.assert_array_equal(again["pixel_values"][0], found[1])


def test_without_the_import_transformers_names_the_package_and_fetches_no_code(folder, tmp_path):
    code = f"""
from transformers import AutoImageProcessor
for trusted in (None, True):
    try:
        AutoImageProcessor.from_pretrained({str(folder)!r}, trust_remote_code=trusted)
    except (ValueError, OSError) as error:
        print(" ".join(str(error).split()))
"""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "PYTHONPATH": ""}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    said = done.stdout.split("[y/N] ")[-1].splitlines()  # before the first it asks, and gets no answer
    assert len(said) == 2, done.stderr
    assert all("the Python package afloc_jax (write `import afloc_jax` before this line)" in line for line in said)
    assert [path for path in tmp_path.rglob("*.py") if path.name != "__init__.py"] == []


def test_importing_the_package_imports_no_transformers():
    code = "import sys, afloc_jax; sys.exit(bool({'transformers', 'numpy', 'jax'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_path_of_the_training_machine_is_stored(folder):
    run = RunConfig(model=ModelSettings(text=TextSettings(tokenizer="/somewhere/private")))
    assert "private" not in json.dumps(FolderConfig.of_run(run, {}).stored())


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: shutil.rmtree(f), "no such model folder"),
        (lambda f: (f / "config.json").unlink(), "config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "config.json").write_text('{"format_version": 99}'), "format_version 99"),
        (lambda f: (f / "config.json").write_text("[]"), "has no format_version"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "safetensors"),
        (lambda f: (f / "model.safetensors").write_bytes(b""), "safetensors"),
    ],
)
def test_a_damaged_folder_is_named_in_one_line(folder, tmp_path, damage, words):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    damage(copy)
    with pytest.raises(ModelFolderError, match=words) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_weights_of_another_architecture_are_refused_with_names_and_shapes(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["architecture"]["text"]["bert"]["intermediate_size"] = 48
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=r"intermediate\.dense\.weight \[64, 32\] instead of \[48, 32\]"):
        load_model(copy)


@pytest.mark.parametrize(
    ("section", "key", "value", "words"),
    [
        (
            "localization",
            "similarity",
            "Presence",
            "localization.similarity = 'Presence': must be one of dot, presence",
        ),
        ("localization", "sigmas", 1.0, "localization.sigmas: unknown key; did you mean sigma"),
        ("architecture", "normalize", "yes", "architecture: model.normalize = 'yes': must be of type bool"),
        ("architecture", "projections", 3, "architecture: model.projections: unknown key"),
    ],
)
def test_a_wrong_setting_in_a_folder_is_named_with_its_file(folder, tmp_path, section, key, value, words):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config[section][key] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelFolderError, match=words) as caught:
        load_model(copy)
    assert str(copy / "config.json") in str(caught.value)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    (copy / "seal.json").unlink()
    words = json.loads((copy / "tokenizer.json").read_text())
    words["model"]["vocab"]["zebra"] = len(words["model"]["vocab"])
    (copy / "tokenizer.json").write_text(json.dumps(words))
    with pytest.raises(
        ModelFolderError, match=r"a vocabulary of (\d+) entries, but the text encoder has \d+ embeddings"
    ):
        load_model(copy)


def test_a_save_that_fails_leaves_the_old_folder_and_nothing_else(folder, tmp_path, monkeypatch):
    target = tmp_path / "model"
    shutil.copytree(folder, target)
    config, variables, tokenizer = load_model(target)
    run = RunConfig(model=config.architecture)
    before = weights_hash(target)

    def no_space(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("afloc_jax.weights.folder.save_tokenizer", no_space)
    with pytest.raises(OSError, match="No space"):
        save_model(target, variables, run, tokenizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert weights_hash(target) == before
    monkeypatch.undo()
    (tmp_path / ".model.writing-left").mkdir()  # left by a killed run
    save_model(target, jax.tree.map(lambda x: x * 2, variables), run, tokenizer, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert weights_hash(target) != before


def test_results_enter_the_model_card_with_their_intervals(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    before = ModelCard.load(copy / "README.md")
    assert "Not evaluated yet" in before.text and before.data.eval_results is None
    assert before.data.to_dict()["widget"] == [{"text": "small left pleural effusion"}, {"text": "no pneumothorax"}]
    overall = {"mean": 0.8125, "lower": 0.75, "upper": 0.875}
    prior = {"metrics": {"pointing": {"overall": {"mean": 0.5, "lower": 0.4, "upper": 0.6}}}}
    found = {"n": 32, "metrics": {"pointing": {"overall": overall}}, "baselines": {"prompt_prior": prior}}
    results = {"phantom": found}
    summaries = {"phantom": {**found, "settings": {"name": "phantom"}}}
    update_card(copy, {"results": results, "tables": card_tables(results), "index": card_index(summaries)})
    card = (copy / "README.md").read_text()
    (result,) = ModelCard(card).data.eval_results
    assert (result.task_type, result.dataset_type, result.dataset_name) == ("localization", "phantom", "phantom")
    assert (result.metric_type, result.metric_name, result.metric_value) == ("pointing", "Pointing game", 0.8125)
    assert "| data set | samples | Pointing game |\n|---|---|---|\n| phantom | 32 | 0.812 [0.750, 0.875] |" in card
    assert "\n| phantom: prompt prior, no model | 32 | 0.500 [0.400, 0.600] |" in card
    assert "four sentences" in card
    assert read_config(copy).card["data"] == "four sentences"
    load_model(copy)


def test_results_on_the_card_do_not_keep_a_folder_from_loading(folder, tmp_path):
    copy = tmp_path / "model"
    shutil.copytree(folder, copy)
    overall = {"mean": 0.5, "lower": 0.4, "upper": 0.6}
    metrics = {"pointing": {"overall": overall}, "iou": {"overall": overall, "per_threshold": {"0.1": overall}}}
    update_card(copy, {"results": {"phantom": {"n": 32, "metrics": metrics}}})
    assert afloc_jax.load(copy).image_size == afloc_jax.load(folder).image_size
