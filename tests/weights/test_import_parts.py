"""A start from pretrained parts: image backbones and BERT folders, in any order and under any prefix."""

import functools
from collections import OrderedDict

import numpy as np
import pytest
import torch
from foreign_weights import (
    PUBLISHED,
    assert_holds,
    assert_parts,
    backbone_file,
    bert_config,
    bert_folder,
    checkpoint,
    tokenizer_folder,
    whole_state,
)
from reference.torch_resnet import TorchDenseNet, torch_backbone
from safetensors.numpy import load_file

import afloc_jax
from afloc_jax.errors import UserError
from afloc_jax.files import Path, write_json
from afloc_jax.models.backbone import Backbone
from afloc_jax.models.densenet import DENSENET, DenseNetStructure
from afloc_jax.models.settings import BACKBONES
from afloc_jax.weights import architecture, importers, sources
from afloc_jax.weights.draft import Draft
from afloc_jax.weights.folder import read_config
from afloc_jax.weights.importers import import_model


@pytest.mark.parametrize(
    "weights, old, prefix", [("model.safetensors", False, ""), ("pytorch_model.bin", True, "bert.")]
)
def test_an_image_backbone_and_a_bert_make_a_start_in_any_order(tmp_path, weights, old, prefix):
    image, image_state = backbone_file(tmp_path / "resnet18.pth")
    text, text_state = bert_folder(tmp_path / "Clinical", weights, old, prefix, heads=bool(prefix))
    report = import_model([image, text], tmp_path / "one")
    import_model([str(text), str(image)], tmp_path / "two")
    for folder in ("one", "two"):
        assert_parts(tmp_path / folder, image_state, text_state)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert all(one[name].tobytes() == two[name].tobytes() for name in one)
    stored = read_config(tmp_path / "one").architecture
    assert stored.projection_dim == 32 and stored.text.structure.num_attention_heads == 4
    projections = ("global_embedder.bias", "global_embedder.weight", "local_embedder.weight", "local2_embedder.weight")
    assert set(report.missing) == {f"img_encoder.{name}" for name in projections}
    assert "fc.weight" in report.left_out
    assert ("cls_projection_head.weight" in report.left_out) == bool(prefix)
    assert any("must be trained before use" in note for note in report.notes)
    card = (tmp_path / "one" / "README.md").read_text()
    assert "Train it before use" in card
    assert "trained contrastively" not in card and "heat maps for free-text" not in card
    assert afloc_jax.load(tmp_path / "one").embed_texts(["small effusion"]).report.shape == (1, 32)


def test_a_start_is_imported_into_a_bucket_and_replaced_there(tmp_path, bucket):
    image, _ = backbone_file(tmp_path / "resnet18.pth")
    text, _ = bert_folder(tmp_path / "Clinical", "model.safetensors", False, "", heads=False)
    for seed in (1, 2):
        import_model([image, text], f"{bucket}/model", seed=seed)
        assert read_config(f"{bucket}/model").seed == seed
    Path(f"{bucket}/model/config.json").unlink()
    with pytest.raises(UserError, match="exists and is not a model folder"):
        import_model([image, text], f"{bucket}/model")
    write_json(f"{bucket}/model/.writing", 0)  # as a killed import leaves it
    import_model([image, text], f"{bucket}/model")
    assert afloc_jax.load(f"{bucket}/model").embed_texts(["small effusion"]).report.shape == (1, 32)
    with pytest.raises(UserError, match="remote storage is not supported"):  # foreign sources lie on this machine
        import_model([f"{bucket}/model", text], tmp_path / "model")


@pytest.mark.parametrize(
    "file, prefix, wrap",
    [
        ("a.safetensors", "", None),
        ("a.pth", "module.", lambda state: {"state_dict": state, "epoch": 1}),
        ("a.pt", "model.backbone.", lambda state: {"model": state}),
    ],
)
def test_backbones_are_found_under_prefixes_and_in_wrappers(tmp_path, file, prefix, wrap):
    path, state = backbone_file(tmp_path / file, rename=lambda n: prefix + n, head=("fc", "head.fc"), wrap=wrap)
    found = sources.read_source(path)
    assert found.kind == sources.IMAGE and found.tensors.keys() == state.keys()
    for name, value in state.items():
        np.testing.assert_array_equal(found.tensors[name].array(), value.numpy())
    assert set(found.left_out) == {f"{prefix}fc.weight", f"{prefix}head.fc.weight"}


def test_a_backbone_alone_leaves_a_text_encoder_as_the_tokenizers_config_describes_it(tmp_path):
    path, state = backbone_file(tmp_path / "resnet18.pth")
    words = tokenizer_folder(tmp_path / "words")
    (words / "config.json").write_text(bert_config().to_json_string())
    report = import_model(path, tmp_path / "model", words)
    assert_parts(tmp_path / "model", state)
    assert read_config(tmp_path / "model").architecture.text.bert["num_hidden_layers"] == 2
    assert "text_encoder.model.encoder.layer.1.output.dense.weight" in report.missing


def test_old_dotted_names_of_densenets_are_read(tmp_path):
    def dotted(name):
        for part in ("norm", "conv"):
            for number in "12":
                if "denselayer" in name:
                    name = name.replace(f".{part}{number}.", f".{part}.{number}.")
        return name

    path, state = backbone_file(tmp_path / "densenet121.pth", "densenet121", dotted, head=("classifier",))
    assert any(".norm.1." in name for name in torch.load(path))
    text, _ = bert_folder(tmp_path / "bert")
    report = import_model([path, text], tmp_path / "model")
    assert report.backbone == "densenet121" and report.left_out == ("classifier.weight",)
    assert_parts(tmp_path / "model", state)


@pytest.mark.parametrize("backbone", PUBLISHED)
def test_every_backbone_is_told_by_its_shapes(backbone):
    with torch.device("meta"):
        state = torch_backbone(backbone).state_dict()
    shapes = {f"img_encoder.model.{name}": tuple(value.shape) for name, value in state.items()}
    assert architecture.image_backbone(shapes) == (backbone, {})


def test_a_backbone_that_is_none_of_them_is_described():
    with pytest.raises(UserError, match=r"blocks \(1, 0, 0, 0\).*known are resnet18"):
        architecture.image_backbone({"img_encoder.model.layer1.0.conv1.weight": (64, 64, 3, 3)})


def test_a_text_encoder_alone_leaves_the_image_encoder_random_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(importers, "Draft", functools.partial(Draft, backbone="resnet18"))
    text, state = bert_folder(tmp_path / "bert")
    report = import_model(text, tmp_path / "model")
    assert_parts(tmp_path / "model", state)
    assert len(report.missing) > 50 and len(report.lines()) < 8
    assert not any("text_encoder" in name for name in report.missing)
    assert any("img_encoder.model.* (" in line for line in report.lines())


def test_a_bert_without_a_pooler_is_whole(tmp_path):
    text, state = bert_folder(tmp_path / "bert", "pytorch_model.bin")
    weights = torch.load(text / "pytorch_model.bin")
    torch.save({n: v for n, v in weights.items() if not n.startswith("pooler")}, text / "pytorch_model.bin")
    report = import_model([text, backbone_file(tmp_path / "r.pth")[0]], tmp_path / "model")
    assert {"text_encoder.model.pooler.dense.weight", "text_encoder.model.pooler.dense.bias"} <= set(report.missing)
    assert_parts(tmp_path / "model", {n: v for n, v in state.items() if "pooler" not in n})


def test_half_precision_is_stored_as_the_same_numbers_in_float32(tmp_path):
    state = OrderedDict((n, v.bfloat16() if v.is_floating_point() else v) for n, v in whole_state().items())
    import_model(checkpoint(tmp_path / "h.ckpt", state), tmp_path / "model", tokenizer_folder(tmp_path / "words"))
    assert_holds(tmp_path / "model", {n: v.float() for n, v in state.items() if v.is_floating_point()})


def test_a_network_of_torchxrayvision_has_one_channel_and_its_own_range_of_pixels(tmp_path, monkeypatch):
    structure = DenseNetStructure(blocks=(2, 1, 2, 1), growth=12, stem_width=16)
    monkeypatch.setitem(BACKBONES, "narrow", Backbone(DENSENET, structure, ("channels",)))
    torch.manual_seed(0)
    theirs = TorchDenseNet((2, 1, 2, 1), 12, 16).eval()
    theirs.features.conv0 = torch.nn.Conv2d(1, 16, 7, 2, 3, bias=False)
    torch.save({**theirs.state_dict(), "op_threshs": torch.zeros(18)}, tmp_path / "xrv.pt")
    text, _ = bert_folder(tmp_path / "bert")
    report = import_model([tmp_path / "xrv.pt", text], tmp_path / "model")
    assert (report.backbone, report.left_out) == ("narrow", ("op_threshs",))
    assert any("assumed: squares of 224 pixels in -1024 ... 1024" in note for note in report.notes)
    model = afloc_jax.load(tmp_path / "model")
    assert model.config.architecture.image.options == {"channels": 1}
    square = np.random.default_rng(0).integers(0, 256, (1, 224, 224), dtype=np.uint8)
    pixels = (2 * square.astype(np.float32) / 255 - 1) * 1024
    with torch.inference_mode():
        features = theirs(torch.from_numpy(pixels)[None])[3].mean((2, 3)).numpy()
    layer = model.variables["params"]["image_encoder"]["project_whole"]
    wanted = features @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    np.testing.assert_allclose(model.embed_squares(square).whole, wanted, rtol=1e-3, atol=1e-4 * np.abs(wanted).max())
