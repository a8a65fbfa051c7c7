"""Import of vision transformers in Hugging Face folders: their weights, their options, how they read images."""

import json

import numpy as np
import pytest
import torch
from foreign_weights import bert_folder, tokenizer_folder
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import (
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    ViTConfig,
    ViTModel,
)

import afloc_jax
from afloc_jax.errors import UserError
from afloc_jax.export.write import export_model
from afloc_jax.training import start
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.folder import load_model, read_config
from afloc_jax.weights.importers import import_model
from afloc_jax.weights.processors import read_processor
from afloc_jax.weights.sources import IMAGE, read_source
from configs.afloc import get_config

SIZES = {"hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4}
PREFIX = "img_encoder.model."
# As in the folder of RAD-DINO, with a smaller side: 7 cells, where positions have 5.
RAD_DINO = {
    "crop_size": {"height": 98, "width": 98},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.5307, 0.5307, 0.5307],
    "image_processor_type": "BitImageProcessor",
    "image_std": [0.2583, 0.2583, 0.2583],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 98},
}


def dinov2(registers=0):
    sizes = {**SIZES, "mlp_ratio": 2, "patch_size": 14, "image_size": 70}
    if registers:
        return Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, num_register_tokens=registers))
    return Dinov2Model(Dinov2Config(**sizes))


def vit():
    return ViTModel(ViTConfig(**SIZES, intermediate_size=128, patch_size=16, image_size=80, layer_norm_eps=1e-6))


MODELS = {"dinov2": dinov2, "registers": lambda: dinov2(3), "vit": vit}


def hugging_face_folder(folder, model, processor=None):
    torch.manual_seed(0)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(torch.randn_like(value) * 0.1)
    model.eval().save_pretrained(folder)
    if processor:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return bert_folder(tmp_path_factory.mktemp("text") / "bert")[0]


def test_from_one_png_to_patch_tokens(tmp_path, text):
    """RAD-DINO's layout: the folder says how images are read, and levels are products of the tokens of transformers."""
    theirs = dinov2()
    report = import_model([hugging_face_folder(tmp_path / "dino", theirs, RAD_DINO), text], tmp_path / "model")
    assert report.backbone == "dinov2_tiny" and report.left_out == ("embeddings.mask_token",)
    assert any("98 x 98 pixels (its middle is cut out)" in note for note in report.notes)
    stored = read_config(tmp_path / "model")
    assert stored.architecture.image.options == {"position_grid": 5, "heads": 4}
    assert stored.architecture.image.mean == (0.5307,) and stored.preprocessing.short_side == 98

    pixels = np.random.default_rng(0).integers(0, 256, (120, 200), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "film.png")
    # The rule of the processor: the short side to 98, bicubic in Pillow; the middle; mean and deviation.
    scaled = np.asarray(Image.open(tmp_path / "film.png").convert("RGB").resize((163, 98), Image.Resampling.BICUBIC))
    cut = scaled[:, 32 : 32 + 98].astype(np.float32) / 255
    values = torch.from_numpy((cut - np.float32(0.5307)) / np.float32(0.2583)).permute(2, 0, 1)[None]
    with torch.inference_mode():
        found = theirs(values, output_hidden_states=True)
        shallow = theirs.layernorm(found.hidden_states[2])
    tokens = {"deep": found.last_hidden_state[0, 1:], "shallow": shallow[0, 1:], "whole": found.last_hidden_state[0, 0]}

    model = afloc_jax.load(tmp_path / "model")
    levels = model.embed_images([tmp_path / "film.png"])
    for name, theirs_ in tokens.items():
        layer = model.variables["params"]["image_encoder"][f"project_{name}"]
        wanted = theirs_.numpy() @ np.asarray(layer["kernel"]) + np.asarray(layer.get("bias", 0))
        mine = np.asarray(getattr(levels, name)[0])
        assert np.abs(mine.reshape(wanted.shape) - wanted).max() <= 1e-5 * np.abs(wanted).max(), name
    ((localized,),) = model.localize([pixels], ["small effusion"])
    assert localized.heatmap.shape == (120, 200)
    assert (localized.heatmap[:, :35] == localized.heatmap.min()).all()  # 40 columns were cut off on either side


@pytest.mark.parametrize("kind", MODELS)
def test_weights_go_both_ways_by_one_table(tmp_path, text, kind):
    theirs = MODELS[kind]()
    folder = hugging_face_folder(tmp_path / "theirs", theirs)
    report = import_model([folder, text], tmp_path / "model")
    assert any("assumed: squares of" in note for note in report.notes)
    stored = load_file(tmp_path / "model" / "model.safetensors")
    back = {name.removeprefix(PREFIX): value for name, value in stored.items() if name.startswith(PREFIX)}
    original = load_file(folder / "model.safetensors")
    left_out = {"embeddings.mask_token", "pooler.dense.weight", "pooler.dense.bias"}
    assert back.keys() == original.keys() - left_out
    for name, value in back.items():
        np.testing.assert_array_equal(value, original[name])
    save_file(back, folder / "model.safetensors", metadata={"format": "pt"})
    again = type(theirs).from_pretrained(folder).eval()
    image = torch.randn(1, 3, theirs.config.image_size, theirs.config.image_size)
    with torch.inference_mode():
        expected, found = (model(image).last_hidden_state for model in (theirs, again))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("kind, prefix", [("dinov2", ""), ("registers", "backbone."), ("vit", "vit.")])
def test_a_bare_state_dict_of_a_recent_transformers_is_read_too(tmp_path, kind, prefix):
    model = MODELS[kind]()
    torch.save({prefix + name: value for name, value in model.state_dict().items()}, tmp_path / "a.bin")
    found = read_source(tmp_path / "a.bin")
    hugging_face_folder(tmp_path / "theirs", model)
    names = load_file(tmp_path / "theirs" / "model.safetensors").keys()
    assert found.kind == IMAGE and {PREFIX + name for name in names if "mask" not in name and "pool" not in name} == {
        *found.tensors
    }


def test_another_size_a_missing_part_and_another_config_are_named(tmp_path, text):
    torch.manual_seed(0)
    other = Dinov2Model(Dinov2Config(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=28))
    folder = hugging_face_folder(tmp_path / "other", other)
    with pytest.raises(UserError, match=r"a dinov2 of 1 blocks of width 32 and 128: known are dinov2_small"):
        import_model([folder, text], tmp_path / "model")
    folder = hugging_face_folder(tmp_path / "dino", dinov2())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "patch_size": 16}))
    with pytest.raises(UserError, match="says patch_size 16, its tensors 14: they do not belong together"):
        import_model([folder, text], tmp_path / "model")
    (folder / "config.json").write_text(json.dumps(config))
    state = load_file(folder / "model.safetensors")
    save_file({name: value for name, value in state.items() if name != "layernorm.bias"}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"missing: img_encoder\.model\.layernorm\.bias"):
        import_model([folder, text], tmp_path / "model")


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"resample": 9}, r"resample = 9"),
        ({"size": {"height": 98, "width": 70}}, r"size = .* squares"),
        ({"crop_size": {"height": 112, "width": 112}}, "crop_size"),
        ({"do_rescale": False}, "do_rescale = False"),
        ({"image_mean": [0.1, 0.2]}, "2 values; 1 or 3 are supported"),
        ({"do_pad": True}, "do_pad = True"),
    ],
)
def test_a_rule_that_makes_no_square_is_refused_by_name(tmp_path, changed, message):
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**RAD_DINO, **changed}))
    with pytest.raises(UserError, match=message):
        read_processor(tmp_path)


def test_the_rule_of_a_vit_stretches_and_keeps_three_means(tmp_path):
    stated = {"size": {"height": 224, "width": 224}, "resample": 2, "image_mean": [0.485, 0.456, 0.406]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**stated, "image_std": [0.2, 0.2, 0.2]}))
    found = read_processor(tmp_path)
    assert (found.preprocessing.geometry, found.preprocessing.resample) == ("stretch", "bilinear")
    assert (found.mean, found.std) == ((0.485, 0.456, 0.406), (0.2, 0.2, 0.2))
    assert read_processor(tokenizer_folder(tmp_path / "words")) is None


def test_a_run_takes_what_belongs_to_the_weights_and_refuses_another_value(tmp_path):
    folder = hugging_face_folder(tmp_path / "dino", dinov2(3), RAD_DINO)
    config = get_config()
    config.model.image.backbone, config.model.image.input_size = "dinov2_tiny", 98
    config.init_from = str(folder)
    run = RunConfig.from_config(config)
    sources = start.foreign_sources(run)
    image = start.adopt(run, sources).model.image
    assert image.options == {"position_grid": 5, "registers": 3, "heads": 4}
    assert (image.mean, image.std) == ((0.5307,), (0.2583,))
    config.model.image.options = {"registers": 2}
    with pytest.raises(UserError, match=r"options.registers = 2: the dinov2_tiny in config.init_from has 3"):
        start.adopt(RunConfig.from_config(config), sources)


def test_a_folder_that_crops_is_read_by_the_processor_of_transformers(tmp_path, text):
    from transformers import AutoImageProcessor

    import_model([hugging_face_folder(tmp_path / "dino", dinov2(), RAD_DINO), text], tmp_path / "model")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (120, 200), dtype=np.uint8)
    square = afloc_jax.load(tmp_path / "model").square_of(image)[0]
    found = processor(image, return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(found[0, 0], square / 127.5 - 1, atol=1e-6)
    assert load_model(tmp_path / "model").config.preprocessing.geometry == "crop"
    with pytest.raises(UserError, match="its images are framed by 'crop'"):
        export_model(tmp_path / "model", tmp_path / "export", "torch-module")
