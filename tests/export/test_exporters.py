"""Exports against afloc_jax itself: every backbone, every option, every format, odd batches, damage."""

import functools
import json

import jax
import numpy as np
import pytest
import torch
from exports import (
    SMALL,
    assert_equal_outputs,
    inputs_of,
    random_state,
    run_check,
    run_torch,
    small_config,
    write_model,
)
from safetensors.numpy import load_file, save_file

from afloc_jax.export.check import our_outputs
from afloc_jax.export.copied import afloc_torch
from afloc_jax.export.formats import FORMATS
from afloc_jax.export.source import read_source
from afloc_jax.export.write import MARKER, export_model
from afloc_jax.models import build
from afloc_jax.models.backbone import Backbone
from afloc_jax.models.densenet import DENSENET, DenseNetStructure
from afloc_jax.models.settings import BACKBONES, ImageSettings, ModelSettings, TextSettings
from afloc_jax.weights import torch_names


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


@pytest.mark.parametrize("channels", [3, 1])
def test_a_narrow_dense_network_gives_our_numbers_in_plain_torch(monkeypatch, channels):
    structure = DenseNetStructure(blocks=(2, 1, 2, 1), growth=4, stem_width=8, channels=channels)
    name = f"narrow{channels}"
    monkeypatch.setitem(BACKBONES, name, Backbone(DENSENET, structure))
    text = TextSettings({"vocab_size": 8, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2})
    settings = ModelSettings(16, image=ImageSettings(name, 64), text=text)
    state = random_state(settings)
    image = np.random.default_rng(0).integers(0, 256, (3, 48, 48), np.uint8)
    encode = jax.jit(functools.partial(build(settings).apply, method="encode_image"))
    ours = encode(torch_names.from_torch(state, settings), image)

    described = {"family": "densenet", "structure": structure.plain(), "input_size": 64, "center": False}
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
        small_config(
            localization={"prompt_level": "sentence", "sigma": 6.0}, side=96, text={"projection": 12}, projection_dim=12
        ),
    ],
    ids=["normalized means", "bottleneck groups", "stem pool, centre", "receptive field", "sentence, means, text head"],
)
def test_every_option_gives_our_numbers_in_plain_torch(tmp_path, config):
    source = read_source(write_model(tmp_path / "model", config))
    prompts, inputs = inputs_of(source, 3)
    folder = export_model(source.folder, tmp_path / "export", "torch-module")
    assert_equal_outputs(run_torch(folder, inputs), our_outputs(source, inputs["image"], prompts))


TRANSFORMERS = {
    "dinov2": {"backbone": "dinov2_tiny", "options": {"registers": 2, "position_grid": 5, "whole": "mean"}},
    "vit": {"backbone": "vit_tiny", "options": {"position_grid": 2, "activation": "gelu_new"}},
}
SCALED = {"mean": (0.4, 0.5, 0.6), "std": (0.2, 0.2, 0.3)}


@pytest.mark.parametrize(("kind", "format"), [("vit", "torch-module"), ("dinov2", "onnx"), ("dinov2", "stablehlo")])
def test_vision_transformers_give_our_numbers_in_every_format(tmp_path, kind, format):
    image = {**TRANSFORMERS[kind], "input_size": 48, **(SCALED if kind == "dinov2" else {})}
    small = {"width": 16, "blocks": 2, "mlp_width": 24, "patch": 8, "shallow_block": 1}
    image["options"] = {**small, **image["options"]}
    text = {"projection": 16}  # a head of texts is part of every format, too
    source = read_source(write_model(tmp_path / "model", small_config(image=image, text=text)))
    folder = export_model(source.folder, tmp_path / "export", format)
    assert (folder / "afloc_transformer.py").is_file() == (format == "torch-module")
    if format == "torch-module":
        prompts, inputs = inputs_of(source, 3)
        assert_equal_outputs(run_torch(folder, inputs), our_outputs(source, inputs["image"], prompts))
    else:
        good = run_check(folder)
        assert good.returncode == 0, good.stderr
        assert "largest difference" in good.stdout


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
        from afloc_jax.export.copied import afloc_onnx

        run = afloc_onnx.load(folder)
    else:
        from afloc_jax.export.copied import afloc_stablehlo

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
    if format in ("safetensors", "small"):
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
