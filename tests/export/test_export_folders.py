"""What an export leaves in its folder, what it refuses, and what its files can be used without."""

import ast
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from exports import (
    PROMPTS,
    random_state,
)
from PIL import Image
from reference.torch_resnet import TorchImageEncoder, torch_backbone
from safetensors.numpy import load_file

import afloc_jax
from afloc_jax.errors import UsageError, UserError
from afloc_jax.export.copied import afloc_inputs, afloc_localize, afloc_torch
from afloc_jax.export.formats import FORMATS
from afloc_jax.export.source import COPIED, read_source
from afloc_jax.export.write import export_model
from afloc_jax.inference.localization import Localization
from afloc_jax.inference.pixels import to_square
from afloc_jax.models.settings import ModelSettings
from afloc_jax.weights import torch_names
from afloc_jax.weights.folder import load_model, save_model
from configs.afloc import get_config
from data_pipelines.images import Geometry
from data_pipelines.reports import clean_prompt
from data_pipelines.tokens import load_tokenizer, tokenize


def test_the_published_loader_finds_its_names_and_settings(goldens, tmp_path):
    """The small golden model: read as the published code reads a checkpoint."""
    config = get_config()
    config.model.projection_dim = 64
    config.model.text.bert = json.loads((goldens / "bert" / "config.json").read_text())
    model = ModelSettings.read(config.model)
    variables = torch_names.from_torch(random_state(model), model)
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
    with pytest.raises(UsageError, match="choose one of safetensors, small, afloc-ckpt, torch-module, onnx, stablehlo"):
        export_model(model, tmp_path / "new", "keras")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine"


def test_an_export_appears_whole_or_not_at_all(models, tmp_path, monkeypatch):
    folder = export_model(models["plain"], tmp_path / "export", "safetensors")
    before = sorted(path.name for path in Path(folder).rglob("*"))

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("afloc_jax.export.write.write_check", fail)
    with pytest.raises(OSError, match="disk full"):
        export_model(models["plain"], folder, "torch-module")
    assert sorted(path.name for path in Path(folder).rglob("*")) == before
    assert [path.name for path in tmp_path.iterdir()] == ["export"]
    monkeypatch.undo()
    export_model(models["plain"], folder, "torch-module")
    assert not (folder / "model.safetensors").exists()


def test_an_exported_model_folder_is_a_model_folder_that_names_its_processor(models, tmp_path):
    old = tmp_path / "of an earlier version"
    shutil.copytree(models["demo"], old)
    (old / "preprocessor_config.json").write_text('{"do_pad": true}')
    folder = export_model(old, tmp_path / "export", "safetensors")
    written = [(place / "preprocessor_config.json").read_text() for place in (folder, models["demo"])]
    assert written[0] == written[1] and "AFLocImageProcessor" in written[0]
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
    monkeypatch.setattr("afloc_jax.export.afloc_ckpt.beyond_the_release", lambda source: [])
    with pytest.raises(UserError, match=rf'needs the package {package}; run: pip install "afloc-jax\[export\]"'):
        export_model(models["plain"], tmp_path / "export", format)


def test_exporting_needs_no_torch_until_a_format_asks_for_it():
    code = "import sys, afloc_jax.export.write; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(afloc_jax.__file__).parents[1]).returncode == 0


def test_the_network_files_import_nothing_but_torch_and_the_standard_library():
    imported = set()
    texts = [(COPIED / name).read_text() for name in ("afloc_torch.py", "afloc_transformer.py")]
    for node in (node for text in texts for node in ast.walk(ast.parse(text))):
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
    prompts += ["T1.5 .5 cm", "1.2x1.5cm", "nodule of 1½ cm", "3½ x 2 mm", "lésion", "हिंदी", "がん"]
    ours = tokenize(source.tokenizer, [clean_prompt(prompt) for prompt in prompts], 16)
    theirs = afloc_inputs.tokenize(folder, prompts, 16)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name], array, err_msg=name)
    with pytest.raises(ValueError, match="holds no word"):
        afloc_inputs.tokenize(folder, ["..."], 16)


@pytest.mark.parametrize("format", ["torch-module", "onnx", "stablehlo"])
def test_a_script_maps_a_picture_at_its_size_from_any_folder_and_writes_where_it_is_told(models, tmp_path, format):
    folder = export_model(models["demo"], tmp_path / "export", format)
    (tmp_path / "films").mkdir()
    rows, columns = np.mgrid[:90, :131]
    film = 60 + 150 * np.exp(-((rows - 30) ** 2 + (columns - 90) ** 2) / 300)
    Image.fromarray(film.astype(np.uint8)).save(tmp_path / "films/a.png")
    script = [sys.executable, str(folder / "afloc_localize.py")]
    call = [*script, "../films/a.png", "small effusion", "edema", "--out", "../told", "--threshold", "0.1"]
    (tmp_path / "elsewhere").mkdir()
    done = subprocess.run(call, cwd=tmp_path / "elsewhere", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "elsewhere").iterdir()) and len(list((tmp_path / "films").iterdir())) == 1
    told = json.loads((tmp_path / "told/a.localize.json").read_text())["prompts"]
    ours = afloc_jax.load(models["demo"]).localize([tmp_path / "films/a.png"], ["small effusion", "edema"], 0.1)[0]
    for prompt, result in zip(told, ours, strict=True):
        found = np.load(tmp_path / "told" / prompt["heatmap"])
        assert found.dtype == np.float32 and found.shape == (90, 131)
        np.testing.assert_allclose(found, result.heatmap, atol=0.02 * np.abs(result.heatmap).max())
        assert prompt["similarity"] == pytest.approx(result.similarity, abs=0.02)
    call = [sys.executable, str(folder / "afloc_inputs.py"), "gone.png", "edema"]  # the command of older exports
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("afloc_inputs.py: gone.png: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("shape", [(1, 1), (7, 5), (40, 61)])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.9])
def test_scripts_draw_our_boxes_on_our_maps(shape, threshold, monkeypatch):
    monkeypatch.syspath_prepend(str(COPIED))
    random, geometry = np.random.default_rng(shape[0]), Geometry(*shape, side=24)
    square = random.random((24, 24)).astype(np.float32)
    ours = Localization(square, 0.0, "edema", geometry, threshold)
    theirs = afloc_localize.to_original(square, *shape)
    np.testing.assert_allclose(theirs, ours.heatmap, atol=1e-5)
    expected, found = ours.boxes.tolist(), afloc_localize.boxes(ours.heatmap, threshold).tolist()
    assert sorted(found) == sorted(expected) and found[:1] == expected[:1]


@pytest.mark.parametrize("format", FORMATS)
def test_every_export_carries_its_card_its_licence_and_a_short_readme(models, tmp_path, format, monkeypatch):
    monkeypatch.setattr("afloc_jax.export.afloc_ckpt.beyond_the_release", lambda source: [])
    monkeypatch.setattr(f"afloc_jax.export.{FORMATS[format].module}.write", lambda source, folder: None)
    folder = export_model(models["plain"], tmp_path / "export", format)
    terms = (folder / "LICENSE").read_text()
    assert "The weights inherit the terms of the data" in terms and "Apache License" in terms
    card = (models["plain"] / "README.md").read_text()
    readme = (folder / "README.md").read_text()
    if not FORMATS[format].use:  # a model folder
        assert readme == card
        return
    assert (folder / "MODEL_CARD.md").read_text() == card
    assert 8 <= sum(map(bool, readme.splitlines())) <= 14 and max(map(len, readme.splitlines())) <= 120
    assert f"pip install {' '.join(FORMATS[format].runtime)}" in readme and "python check/check.py" in readme


@pytest.mark.parametrize("format", FORMATS.values(), ids=FORMATS)
def test_every_format_has_its_module_its_check_and_a_line_for_the_command_line(format):
    assert callable(importlib.import_module(f"afloc_jax.export.{format.module}").write)
    assert (COPIED / format.check).is_file()
    assert format.about
