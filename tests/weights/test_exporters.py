"""Exports against afloc_jax itself: every backbone, every option, every format, odd batches, damage."""

import ast
import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from PIL import Image
from reference.torch_resnet import TorchImageEncoder, torch_backbone
from safetensors.numpy import load_file, save_file

import afloc_jax
from afloc_jax.errors import UsageError, UserError
from afloc_jax.inference.model import to_square
from afloc_jax.models import build
from afloc_jax.models.bert import BertSettings
from afloc_jax.models.densenet import DenseNetSettings
from afloc_jax.models.settings import ImageSettings, ModelSettings, TextSettings
from afloc_jax.weights import exporters, torch_names
from afloc_jax.weights.exporters import FORMATS, MARKER, export_model
from afloc_jax.weights.exporters.check import our_outputs
from afloc_jax.weights.exporters.copied import afloc_inputs, afloc_torch
from afloc_jax.weights.exporters.source import COPIED, read_source
from afloc_jax.weights.folder import load_model, save_model
from configs.afloc import get_config
from data_pipelines.reports import clean_prompt
from data_pipelines.tokens import learn_tokenizer, load_tokenizer, tokenize

TEXTS = ("small left pleural effusion. no edema", "the heart is enlarged", "findings suggesting pneumonia. no nodule")
PROMPTS = (
    "Small left effusion.",
    "No pneumothorax. The heart is enlarged",
    "pneumonia",
    "1.5 cm nodule. no edema.",
    "a . . b",
)
TOP_DOWN = {
    "blocks": (1, 1, 2),
    "widths": (8, 12, 16),
    "strides": (1, 2, 2),
    "stem_width": 8,
    "stem_kernel": 5,
    "stem_stride": 2,
    "shallow_stage": 1,
    "deep_stage": 1,
    "top_down": True,
    "drop_context": 0.3,
}
SMALL = {"widths": (8, 8, 16), "stem_width": 8}


def small_config(image=None, text=None, localization=None, **model):
    """A narrow model of 48-pixel squares; the small backbone unless `image` names another."""
    config = get_config()
    config.data.max_tokens = 16
    config.data.builder = {"image_size": 48}
    config.model.projection_dim = 16
    config.model.update(model)
    config.model.image.update({"backbone": "resnet_small", "input_size": 32, "options": SMALL, **(image or {})})
    config.model.text.bert = {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "max_position_embeddings": 16,
    }
    config.model.text.update({"last_layers": 2, **(text or {})})
    config.localization.update(localization or {})
    return config


def write_model(folder, config):
    """A model folder in which every array is random, batch statistics too."""
    tokenizer = learn_tokenizer(TEXTS, 200)
    config.model.text.bert["vocab_size"] = tokenizer.get_vocab_size()
    save_model(folder, torch_names.from_torch(random_state(config.model), config.model), config, tokenizer)
    return folder


def random_state(model_config):
    random, state = np.random.default_rng(0), {}
    for row in torch_names.table(model_config):
        fan_in = max(1, int(np.prod(row.shape[1:])))
        value = random.standard_normal(row.shape) * (1 / np.sqrt(fan_in) if len(row.shape) > 1 else 0.1)
        if len(row.shape) == 1 and row.name.endswith(("weight", "running_var")):
            value = random.uniform(0.5, 1.5, row.shape)
        state[row.name] = value.astype(np.float32)
    return state


PLAIN = small_config()
# As configs/demo.py has it: stages from above, centred projections, sentences read alone, presence maps.
DEMO = small_config(
    image={"input_size": 24, "options": TOP_DOWN, "center": True},
    text={"context": "sentence"},
    localization={"cells": "receptive_field", "prompt_level": "sentence", "similarity": "presence", "sigma": 0.5},
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Model folders of a plain model and of one with every option beyond the published recipe."""
    base = tmp_path_factory.mktemp("models")
    return {"plain": write_model(base / "plain", PLAIN), "demo": write_model(base / "demo", DEMO)}


def inputs_of(source, count):
    """`count` random squares, and prompts with the arrays they become."""
    random, prompts = np.random.default_rng(count), [PROMPTS[i % len(PROMPTS)] for i in range(count)]
    image = random.integers(0, 256, (count, source.image_size, source.image_size), np.uint8)
    return prompts, {"image": image, **tokenize(source.tokenizer, source.model.read_prompts(prompts), 16)}


def run_torch(folder, inputs):
    with torch.inference_mode():
        found = afloc_torch.load(folder)(**{name: torch.from_numpy(array) for name, array in inputs.items()})
    return {name: value.numpy() for name, value in found._asdict().items()}


def assert_equal_outputs(found, expected, tolerance=1e-5):
    assert set(found) >= set(expected)
    for name, value in expected.items():
        difference = np.abs(np.asarray(found[name]) - value).max() / np.abs(value).max()
        assert found[name].shape == value.shape, name
        assert difference <= tolerance, f"{name} differs by {difference:.1e}"


def run_check(folder):
    environment = os.environ | {"PYTHONPATH": str(Path(afloc_jax.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, str(folder / "check" / "check.py")], capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize(
    "backbone",
    ["resnet18", *(pytest.param(name, marks=pytest.mark.slow) for name in ("resnet50", "resnext50", "densenet121"))],
)
def test_every_family_of_backbones_gives_our_numbers_in_plain_torch(tmp_path, backbone):
    config = small_config(image={"backbone": backbone, "input_size": 64, "options": {}})
    source = read_source(write_model(tmp_path / "model", config))
    prompts, inputs = inputs_of(source, 3)
    folder = export_model(source.folder, tmp_path / "export", "torch-module")
    assert_equal_outputs(run_torch(folder, inputs), our_outputs(source, inputs["image"], prompts), 1e-4)


def test_a_narrow_dense_network_gives_our_numbers_in_plain_torch():
    structure = DenseNetSettings(blocks=(2, 1, 2, 1), growth=4, stem_width=8)
    text = TextSettings(BertSettings(vocab_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2))
    settings = ModelSettings(16, image=ImageSettings("densenet121", structure, 64), text=text)
    state = random_state(settings)
    image = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    encode = jax.jit(functools.partial(build(settings).apply, method="encode_image"))
    ours = encode(torch_names.from_torch(state, settings), image)

    described = {"family": "densenet", "structure": dataclasses.asdict(structure), "input_size": 64, "center": False}
    network, prefix = afloc_torch.ImageEncoder(described, 16), "img_encoder."
    found = {name.removeprefix(prefix): torch.from_numpy(v) for name, v in state.items() if name.startswith(prefix)}
    left = network.load_state_dict(found, strict=False)
    assert all(name.endswith("num_batches_tracked") for name in left.missing_keys)
    assert not left.unexpected_keys
    with torch.inference_mode():
        shallow, deep, whole = network.eval()(torch.from_numpy(image))
    found = {"shallow": shallow.movedim(1, -1).numpy(), "deep": deep.movedim(1, -1).numpy(), "whole": whole.numpy()}
    assert_equal_outputs(found, {name: np.asarray(getattr(ours, name)) for name in found})


@pytest.mark.parametrize(
    "config",
    [
        small_config(image={"input_size": 48}, normalize=True, text={"merge_layers": "mean", "merge_pieces": "mean"}),
        small_config(image={"options": {"bottleneck": True, "groups": 2, "group_width": 32, **SMALL}}),
        small_config(image={"options": {"stem_pool": True, "stem_stride": 4, **SMALL}, "center": True}),
        small_config(localization={"cells": "receptive_field", "sigma": 0.0}, text={"last_layers": 1}),
        small_config(localization={"prompt_level": "sentence", "sigma": 6.0}, image={"input_size": 16}),
    ],
    ids=["normalized means", "bottleneck groups", "stem pool, centre", "receptive field", "sentence, block means"],
)
def test_every_option_gives_our_numbers_in_plain_torch(tmp_path, config):
    source = read_source(write_model(tmp_path / "model", config))
    prompts, inputs = inputs_of(source, 3)
    folder = export_model(source.folder, tmp_path / "export", "torch-module")
    assert_equal_outputs(run_torch(folder, inputs), our_outputs(source, inputs["image"], prompts))


@pytest.mark.parametrize("activation", ["gelu_new", "relu", "silu"])
def test_every_activation_gives_our_numbers_in_plain_torch(tmp_path, activation):
    config = small_config()
    config.model.text.bert["hidden_act"] = activation
    source = read_source(write_model(tmp_path / "model", config))
    prompts, inputs = inputs_of(source, 3)
    folder = export_model(source.folder, tmp_path / "export", "torch-module")
    assert_equal_outputs(run_torch(folder, inputs), our_outputs(source, inputs["image"], prompts))


@pytest.mark.parametrize("kind", ["plain", "demo"])
@pytest.mark.parametrize("format", ["torch-module", "onnx", "stablehlo"])
def test_every_batch_gives_our_numbers(models, tmp_path, format, kind):
    source = read_source(models[kind])
    folder = export_model(source.folder, tmp_path / "export", format)
    if format == "torch-module":
        run = lambda **inputs: run_torch(folder, inputs)  # noqa: E731
    elif format == "onnx":
        from afloc_jax.weights.exporters.copied import afloc_onnx

        run = afloc_onnx.load(folder)
    else:
        from afloc_jax.weights.exporters.copied import afloc_stablehlo

        run = afloc_stablehlo.load(folder)
    for count in (1, 3, 5):
        prompts, inputs = inputs_of(source, count)
        assert_equal_outputs(run(**inputs), our_outputs(source, inputs["image"], prompts))


@pytest.mark.parametrize("format", FORMATS)
def test_an_exports_own_check_passes_and_a_damaged_weight_fails_it(tmp_path, models, format):
    model = models["demo"]
    if format == "afloc-ckpt":  # the smallest network that the published code can build, at its input size
        config = small_config(image={"backbone": "resnet50", "input_size": 299, "options": {}})
        model = write_model(tmp_path / "model", config)
    folder = export_model(model, tmp_path / "export", format)
    assert json.loads((folder / MARKER).read_text())["format"] == format
    good = run_check(folder)
    assert good.returncode == 0, good.stderr
    assert "largest difference" in good.stdout
    damage(folder, format)
    bad = run_check(folder)
    assert bad.returncode == 1
    assert "largest difference" in bad.stdout, bad.stderr


def damage(folder, format):
    """Change one array of the deep level."""
    name = "img_encoder.local_embedder.weight"
    if format == "safetensors":
        state = load_file(folder / "model.safetensors")
        save_file(state | {name: state[name] * 1.01}, folder / "model.safetensors")
    elif format == "torch-module":
        state = torch.load(folder / "weights.pt", weights_only=True)
        torch.save(state | {name: state[name] * 1.01}, folder / "weights.pt")
    elif format == "afloc-ckpt":
        checkpoint = torch.load(folder / "model.ckpt", weights_only=False)
        checkpoint["state_dict"]["afloc." + name] *= 1.01
        torch.save(checkpoint, folder / "model.ckpt")
    elif format == "stablehlo":
        path = "params/image_encoder/project_deep/kernel"
        state = dict(np.load(folder / "image.npz"))
        np.savez(folder / "image.npz", **(state | {path: state[path] * 1.01}))
    else:
        import onnx

        graph = onnx.load(folder / "image.onnx")
        weights = [each for each in graph.graph.initializer if name in each.name] or list(graph.graph.initializer)
        for each in weights:
            array = onnx.numpy_helper.to_array(each)
            if array.dtype == np.float32:
                each.CopyFrom(onnx.numpy_helper.from_array(array * np.float32(1.01), each.name))
        onnx.save(graph, folder / "image.onnx")


def test_the_published_loader_finds_its_names_and_settings(goldens, tmp_path):
    """The small golden model: read as the published code reads a checkpoint."""
    config = get_config()
    config.model.projection_dim = 64
    config.model.text.bert = json.loads((goldens / "bert" / "config.json").read_text())
    variables = torch_names.from_torch(random_state(config.model), config.model)
    save_model(tmp_path / "model", variables, config, load_tokenizer(goldens / "bert"))
    folder = export_model(tmp_path / "model", tmp_path / "export", "afloc-ckpt")

    checkpoint = torch.load(folder / "model.ckpt", map_location="cpu", weights_only=False)
    assert all(name.startswith("afloc.") for name in checkpoint["state_dict"])
    found = {name.split("afloc.")[-1]: value for name, value in checkpoint["state_dict"].items()}
    published = json.loads((goldens / "state_dict_shapes.json").read_text())
    assert {name: list(value.shape) for name, value in found.items()} == published
    images = TorchImageEncoder(torch_backbone("resnet50"), 64)
    prefix = "img_encoder."
    images.load_state_dict({name.removeprefix(prefix): v for name, v in found.items() if name.startswith(prefix)})
    read = checkpoint["hyper_parameters"]
    assert read.phase.lower() == "pretrain"
    assert read.model.vision.model_name == "resnet_50"
    assert read.model.text.embedding_dim == 64
    assert (read.model.afloc.temp1, read.model.afloc.temp2, read.model.afloc.temp3) == (4.0, 5.0, 10.0)
    assert read.data.text.word_num == 97
    assert read.data.image.imsize == read.transforms.random_crop.crop_size == 224

    from transformers import AutoTokenizer, BertModel

    bert = BertModel.from_pretrained(folder / read.model.text.bert_type)
    for name, value in bert.state_dict().items():
        if "position_ids" not in name:
            torch.testing.assert_close(value, found[f"text_encoder.model.{name}"])
    assert AutoTokenizer.from_pretrained(folder / "bert")("no effusion")["input_ids"][0] == 2


def test_what_the_published_code_cannot_express_is_named_in_one_line(models, tmp_path):
    with pytest.raises(UsageError) as caught:
        export_model(models["demo"], tmp_path / "export", "afloc-ckpt")
    message = str(caught.value)
    for setting in ("model.image.backbone = 'resnet_small'", "model.image.center", "model.text.context", "presence"):
        assert setting in message
    assert "--format torch-module" in message
    assert "\n" not in message
    assert not (tmp_path / "export").exists()


def test_a_folder_that_holds_something_else_is_left_alone(models, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    model = models["plain"]
    for destination, words in (
        (tmp_path / "full", "holds files that are no export"),
        (tmp_path / "file", "a file is in the way"),
        (model, "lies in the model folder"),
        (model / "export", "lies in the model folder"),
        (model.parent, "holds the model folder"),
    ):
        with pytest.raises(UsageError, match=words):
            export_model(model, destination, "safetensors")
    with pytest.raises(UsageError, match="choose one of safetensors, afloc-ckpt, torch-module, onnx, stablehlo"):
        export_model(model, tmp_path / "new", "keras")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_an_export_appears_whole_or_not_at_all(models, tmp_path, monkeypatch):
    folder = export_model(models["plain"], tmp_path / "export", "safetensors")
    before = sorted(path.name for path in folder.rglob("*"))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("afloc_jax.weights.exporters.torch_module.write_check", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(models["plain"], folder, "torch-module")
    assert sorted(path.name for path in folder.rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    monkeypatch.undo()
    export_model(models["plain"], folder, "torch-module")
    assert not (folder / "model.safetensors").exists()


def test_an_exported_model_folder_is_a_model_folder(models, tmp_path):
    folder = export_model(models["demo"], tmp_path / "export", "safetensors")
    ours, theirs = load_model(models["demo"])[1], load_model(folder)[1]
    np.testing.assert_array_equal(
        ours["params"]["image_encoder"]["project_deep"]["kernel"],
        theirs["params"]["image_encoder"]["project_deep"]["kernel"],
    )


@pytest.mark.parametrize(
    ("format", "package"),
    [("torch-module", "torch"), ("onnx", "onnxscript"), ("afloc-ckpt", "omegaconf"), ("stablehlo", "flatbuffers")],
)
def test_a_missing_package_is_named_with_the_command_that_installs_it(models, tmp_path, monkeypatch, format, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setattr("afloc_jax.weights.exporters.afloc_ckpt.beyond_the_release", lambda source: [])
    with pytest.raises(UserError, match=f"needs the package {package}; run: pip install .*{package}"):
        export_model(models["plain"], tmp_path / "export", format)


def test_exporting_needs_no_torch_until_a_format_asks_for_it():
    code = "import sys, afloc_jax.weights.exporters; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(afloc_jax.__file__).parents[1]).returncode == 0


def test_the_network_file_imports_nothing_but_torch_and_the_standard_library():
    imported = set()
    for node in ast.walk(ast.parse((COPIED / "afloc_torch.py").read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module.split(".")[0])
    assert imported <= {"torch", *sys.stdlib_module_names}


def test_the_weights_of_the_torch_module_have_the_names_of_the_model_folder(models, tmp_path):
    folder = export_model(models["demo"], tmp_path / "export", "torch-module")
    network = afloc_torch.AFLoc(json.loads((folder / "config.json").read_text()))
    stored = load_file(models["demo"] / "model.safetensors")
    network.load_state_dict({name: torch.from_numpy(array) for name, array in stored.items()}, strict=True)


@pytest.mark.parametrize("shape", [(97, 131), (48, 48), (300, 41), (20, 31), (7 * 8, 48), (96, 96)])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16", "LA"])
def test_exports_read_pictures_as_we_do(tmp_path, shape, mode):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (*shape, 3), np.uint8)
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 17 + 3).save(tmp_path / "a.png")
    else:
        Image.fromarray(pixels).convert(mode).save(tmp_path / "a.png")
    ours, theirs = to_square(tmp_path / "a.png", 48)[0], afloc_inputs.read_image(tmp_path / "a.png", 48)
    difference = np.abs(ours.astype(int) - theirs.astype(int))
    assert difference.max() <= 1  # OpenCV rounds in fixed point
    assert difference.mean() < 0.1


def test_exports_read_prompts_as_we_do(models, tmp_path):
    source = read_source(models["plain"])
    folder = export_model(models["plain"], tmp_path / "export", "torch-module")
    prompts = [*PROMPTS, "Left; right!", "no effusion?", "a" * 40, "edema. " * 20, "heart. 2.5 x 3 mm nodule."]
    ours = tokenize(source.tokenizer, [clean_prompt(prompt) for prompt in prompts], 16)
    theirs = afloc_inputs.tokenize(folder, prompts, 16)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)
    with pytest.raises(ValueError, match="holds no word"):
        afloc_inputs.tokenize(folder, ["..."], 16)


def test_the_torch_module_answers_from_the_command_line(models, tmp_path):
    folder = export_model(models["plain"], tmp_path / "export", "torch-module")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (60, 50), np.uint8)).save(tmp_path / "a.png")
    command = [sys.executable, str(folder / "afloc_inputs.py"), str(tmp_path / "a.png"), "small effusion"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "similarity" in done.stdout
    prompt_map = np.load(tmp_path / "a.heatmap.npy")
    ours = afloc_jax.load(models["plain"]).localize([tmp_path / "a.png"], ["small effusion"])[0][0].square
    np.testing.assert_allclose(prompt_map, ours, atol=0.02 * np.abs(ours).max())


def test_every_format_has_a_module():
    assert set(exporters._MODULES) == set(FORMATS)
