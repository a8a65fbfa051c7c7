"""Foreign weights into model folders: what they hold arrives bit for bit, and what they lack is named."""

import importlib.util
import json
from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from reference.torch_resnet import TorchImageEncoder, torch_backbone
from safetensors.numpy import load_file
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, BertModel

import afloc_jax
from afloc_jax.errors import UserError
from afloc_jax.levels import TokenBatch
from afloc_jax.models import build
from afloc_jax.models.settings import BACKBONES
from afloc_jax.weights import architecture, importers, sources
from afloc_jax.weights.folder import load_model, read_config
from afloc_jax.weights.importers import import_model
from afloc_jax.weights.torch_names import table
from configs.afloc import get_config
from data_pipelines.tokens import tokenize

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "##s", "small", "left", "effusion", "no", "nodule"]
PUBLISHED = [name for name in BACKBONES if name != "resnet_small"]


def omegaconf(**model):
    """A config as the family's trainer stores it."""
    from omegaconf import OmegaConf

    text = {"bert_type": "emilyalsentzer/Bio_ClinicalBERT", "last_n_layers": 2, "aggregate_method": "mean"}
    text |= {"norm": False, "embedding_dim": 32, "agg_tokens": True, "freeze_bert": True}
    config = {
        "model": {"norm": False, "vision": {"model_name": "resnet_18", "freeze_cnn": False}, "text": text, **model},
        "data": {"text": {"word_num": 24}, "image": {"imsize": 256}},
        "experiment_name": "published",
        "transforms": {"norm": "half", "random_crop": {"crop_size": 224}},
    }
    return OmegaConf.create(config)


def bert_config(**changed) -> BertConfig:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return BertConfig(**{"vocab_size": len(PIECES), "max_position_embeddings": 32, **sizes, **changed})


def tokenizer_folder(folder, pieces=PIECES):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
    return folder


def whole_state(backbone="resnet18", shallow=True, seed=0) -> OrderedDict:
    """Both towers with the published names, in PyTorch's own modules."""
    torch.manual_seed(seed)
    encoder = TorchImageEncoder(torch_backbone(backbone), 32)
    state = OrderedDict((f"img_encoder.{name}", value) for name, value in encoder.state_dict().items())
    if not shallow:
        state = OrderedDict((name, value) for name, value in state.items() if "local2_embedder" not in name)
    text = BertModel(bert_config()).state_dict()
    return state | OrderedDict((f"text_encoder.model.{name}", value) for name, value in text.items())


def checkpoint(path, state, prefix="afloc.", config=None, **more):
    contents = {"epoch": 2, "state_dict": OrderedDict((prefix + name, value) for name, value in state.items())}
    contents |= {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(4)}}}], "lr_schedulers": [], **more}
    torch.save(contents | {"hyper_parameters": omegaconf() if config is None else config}, path)
    return path


def assert_holds(folder, expected) -> None:
    """The folder's tensors equal these, bit for bit, and there are no others than counters."""
    found = load_file(folder / "model.safetensors")
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)
        assert found[name].dtype == np.float32
    rest = found.keys() - expected.keys()
    assert all(name.endswith("num_batches_tracked") for name in rest), rest


@pytest.fixture
def released(tmp_path):
    """A checkpoint of the release's kind with all that it may carry, and its state dict."""
    state = whole_state()
    extra = OrderedDict(state)
    extra["text_encoder.model.embeddings.position_ids"] = torch.arange(32)[None]
    extra["img_encoder.local_f_embedder.weight"] = torch.zeros(32, 512, 1, 1)
    return checkpoint(tmp_path / "released.ckpt", extra), state, tokenizer_folder(tmp_path / "words")


def test_a_released_checkpoint_becomes_a_folder_with_its_own_settings(released, tmp_path):
    path, state, words = released
    report = import_model(path, tmp_path / "model", words)
    assert_holds(tmp_path / "model", {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")})
    config = read_config(tmp_path / "model")
    assert config["architecture"]["image"]["backbone"] == "resnet18"
    text = config["architecture"]["text"]
    expected = {"last_layers": 2, "merge_layers": "mean", "merge_pieces": "mean", "freeze": True}
    assert {key: text[key] for key in expected} == expected
    assert config["name"] == "published" and config["prompts"]["max_tokens"] == 24
    assert config["preprocessing"]["image_size"] == 224
    assert report.missing == () and report.left_out == ("img_encoder.local_f_embedder.weight",)
    assert any("assumed: 1 attention head" in note for note in report.notes)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "released.ckpt" in card and sources.sha256(path) in card and "local_f_embedder" in card
    assert str(tmp_path) not in card  # where the file lay is nobody's business


def test_import_then_save_then_import_is_bit_identical(released, tmp_path):
    path, _, words = released
    import_model(path, tmp_path / "one", words)
    again = {name: torch.from_numpy(value) for name, value in load_file(tmp_path / "one" / "model.safetensors").items()}
    import_model(checkpoint(tmp_path / "again.ckpt", again), tmp_path / "two", words)
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert one[name].tobytes() == two[name].tobytes(), name
    assert read_config(tmp_path / "one")["architecture"] == read_config(tmp_path / "two")["architecture"]


def test_the_imported_text_encoder_computes_what_berts_own_code_does(released, tmp_path):
    path, state, words = released
    config = bert_config(attn_implementation="eager")
    (words / "config.json").write_text(config.to_json_string())
    import_model(path, tmp_path / "model", words)
    stored, variables, tokenizer = load_model(tmp_path / "model")
    assert stored.architecture.text.bert.num_attention_heads == 4  # from the config.json beside the vocabulary
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
    text = read_config(tmp_path / "model")["architecture"]["text"]
    assert (text["merge_layers"], text["merge_pieces"]) == ("mean", "sum")

    model = afloc_jax.load(tmp_path / "model")
    image = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    found = model.localize([image], ["small left effusion"])[0][0]
    assert found.heatmap.shape == (90, 70) and np.isfinite(found.heatmap).all() and found.heatmap.std() > 0
    reference = TorchImageEncoder(torch_backbone("resnet18"), 32).eval()
    reference.load_state_dict({n.removeprefix("img_encoder."): v for n, v in whole_state().items() if "img_" in n})
    deep = np.asarray(model.embed_images([image]).deep[0])
    square = torch.from_numpy((np.asarray(model._squares([image])[0][0], np.float32) / 255 - 0.5) / 0.5)
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


# Parts


def backbone_file(path, backbone="resnet18", rename=lambda name: name, head=("fc",), wrap=None):
    torch.manual_seed(1)
    state = OrderedDict((rename(name), value) for name, value in torch_backbone(backbone).state_dict().items())
    for name in head:
        state[rename(f"{name}.weight")] = torch.zeros(10, 512)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(wrap(state) if wrap else state, path, _use_new_zipfile_serialization=path.suffix != ".pth")
    return path, {f"img_encoder.model.{name}": value for name, value in torch_backbone_state(state, rename).items()}


def torch_backbone_state(state, rename):
    """The state under its own names again, counters and heads left out."""
    names = [n for n in torch_backbone_names(state, rename) if not n.endswith("num_batches_tracked")]
    return {name: state[rename(name)] for name in names}


def torch_backbone_names(state, rename):
    for backbone in PUBLISHED:
        with torch.device("meta"):
            names = list(torch_backbone(backbone).state_dict())
        if all(rename(name) in state for name in names) and len(names) >= len(state) - 3:
            return names
    raise AssertionError("no backbone has these names")


def old_name(name):
    """Layer norms as TensorFlow called them."""
    return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


def bert_folder(folder, weights="model.safetensors", old=False, prefix="", heads=False, **changed):
    """A Hugging Face folder, and its encoder's state dict."""
    torch.manual_seed(2)
    config = bert_config(**changed)
    tokenizer_folder(folder)
    model = BertForMaskedLM(config)
    encoder = BertModel(config)
    encoder.load_state_dict(model.bert.state_dict(), strict=False)
    state = OrderedDict((prefix + name, value.clone()) for name, value in encoder.state_dict().items())
    if heads:
        state |= {n: v.clone() for n, v in model.state_dict().items() if n.startswith("cls.")}
        state |= {
            "bert.embeddings.position_ids": torch.arange(32)[None],
            "cls_projection_head.weight": torch.ones(3, 32),
        }
    if old:
        state = OrderedDict((old_name(name), value) for name, value in state.items())
    if weights.endswith(".bin"):
        torch.save(state, folder / weights, _use_new_zipfile_serialization=not old)
    else:
        save_file(state, folder / weights)
    (folder / "config.json").write_text(json.dumps({**config.to_dict(), "model_type": "bert"}))
    return folder, {f"text_encoder.model.{name}": value for name, value in encoder.state_dict().items()}


def assert_parts(folder, *parts) -> None:
    found = load_file(folder / "model.safetensors")
    for name, value in (item for part in parts for item in part.items()):
        np.testing.assert_array_equal(found[name], value.numpy(), err_msg=name)


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
    stored = read_config(tmp_path / "one")["architecture"]
    assert stored["projection_dim"] == 32 and stored["text"]["bert"]["num_attention_heads"] == 4
    projections = ("global_embedder.bias", "global_embedder.weight", "local_embedder.weight", "local2_embedder.weight")
    assert set(report.missing) == {f"img_encoder.{name}" for name in projections}
    assert "fc.weight" in report.left_out
    assert ("cls_projection_head.weight" in report.left_out) == bool(prefix)
    assert any("to be trained before use" in note for note in report.notes)
    assert afloc_jax.load(tmp_path / "one").embed_texts(["small effusion"]).report.shape == (1, 32)


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
    assert read_config(tmp_path / "model")["architecture"]["text"]["bert"]["num_hidden_layers"] == 2
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
    assert architecture.image_backbone(shapes) == backbone


def test_a_backbone_that_is_none_of_them_is_described():
    with pytest.raises(UserError, match=r"blocks \(1, 0, 0, 0\).*known are resnet18"):
        architecture.image_backbone({"img_encoder.model.layer1.0.conv1.weight": (64, 64, 3, 3)})


def test_a_text_encoder_alone_leaves_the_image_encoder_random_and_says_so(tmp_path, monkeypatch):
    smaller = get_config()
    smaller.model.image.backbone = "resnet18"
    monkeypatch.setattr(importers, "get_config", lambda: smaller)
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


# Errors


def test_a_checkpoint_without_a_tokenizer_says_which_one_it_wants(released, tmp_path):
    with pytest.raises(UserError, match=r"--tokenizer DIR.*of emilyalsentzer/Bio_ClinicalBERT"):
        import_model(released[0], tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_tokenizer_with_more_entries_than_embeddings_is_refused(released, tmp_path):
    words = tokenizer_folder(tmp_path / "other", [*PIECES, "more"])
    with pytest.raises(UserError, match=r"13 entries, but the text encoder has 12 embeddings"):
        import_model(released[0], tmp_path / "model", words)


@pytest.mark.parametrize(
    "change, match",
    [
        (
            lambda s: s.pop("img_encoder.model.layer2.1.conv1.weight"),
            "missing: img_encoder.model.layer2.1.conv1.weight",
        ),
        (
            lambda s: s.update({"img_encoder.local_embedder.weight": torch.zeros(32, 9, 1, 1)}),
            r"of another shape: img_encoder.local_embedder.weight \[32, 9, 1, 1\] instead of \[32, 256, 1, 1\]",
        ),
        (lambda s: s.pop("text_encoder.model.embeddings.token_type_embeddings.weight"), "not a whole BERT"),
    ],
)
def test_incomplete_towers_and_wrong_shapes_are_named(tmp_path, change, match):
    state = whole_state()
    change(state)
    with pytest.raises(UserError, match=match):
        import_model(checkpoint(tmp_path / "a.ckpt", state), tmp_path / "model", tokenizer_folder(tmp_path / "words"))


def test_sources_that_hold_the_same_part_are_refused(tmp_path):
    one, other = backbone_file(tmp_path / "a.pth")[0], backbone_file(tmp_path / "b.pth")[0]
    with pytest.raises(UserError, match=r"a\.pth and b\.pth both hold an image encoder"):
        import_model([one, other], tmp_path / "model")


@pytest.mark.parametrize(
    "contents, match",
    [
        ({"a": torch.ones(2)}, "nothing that this model has a place for .*'a'"),
        ({"epoch": 1}, "no weights in it"),
        (torch.nn.Linear(2, 2), "a whole pickled object .*state_dict"),
    ],
)
def test_files_of_something_else_are_said_so(tmp_path, contents, match):
    torch.save(contents, tmp_path / "a.pt")
    with pytest.raises(UserError, match=match):
        import_model(tmp_path / "a.pt", tmp_path / "model")


def test_a_folder_of_another_architecture_is_refused(tmp_path):
    text, _ = bert_folder(tmp_path / "bert")
    config = json.loads((text / "config.json").read_text())
    for changed, match in (
        ({"model_type": "roberta"}, "'roberta'; only BERT"),
        ({"hidden_size": 64}, "hidden_size 64"),
    ):
        (text / "config.json").write_text(json.dumps(config | changed))
        with pytest.raises(UserError, match=match):
            import_model(text, tmp_path / "model")


def test_a_model_folder_is_no_source(released, tmp_path):
    import_model(released[0], tmp_path / "model", released[2])
    with pytest.raises(UserError, match="is a model folder already"):
        import_model(tmp_path / "model", tmp_path / "two")


def test_a_forgotten_last_argument_costs_nobody_a_folder(tmp_path):
    image, (text, _) = backbone_file(tmp_path / "r.pth")[0], bert_folder(tmp_path / "bert")
    before = sorted(path.name for path in text.iterdir())
    with pytest.raises(UserError, match=r"bert: exists and is not a model folder; the last argument"):
        import_model(image, text)
    assert sorted(path.name for path in text.iterdir()) == before


# Names on the hub


def test_hub_names_are_found_in_the_cache_and_asked_for_offline_otherwise(tmp_path, monkeypatch):
    import huggingface_hub.constants as constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"owner/bert: no such file or folder here, .*cache.*`hf download owner/bert`"):
        import_model("owner/bert", tmp_path / "model")
    repository = tmp_path / "cache" / "models--owner--bert"
    text, state = bert_folder(repository / "snapshots" / "0123456789abcdef0123456789abcdef01234567")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(text.name)
    found = sources.read_source("owner/bert")
    assert (found.kind, found.title, found.folder) == (sources.TEXT, "owner/bert", text)
    assert found.tensors.keys() == state.keys()


def test_a_path_that_is_missing_is_not_looked_for_on_the_hub(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "find_on_hub", None)
    for path in (tmp_path / "none.ckpt", "some/long/path", "none.pth"):
        with pytest.raises(UserError, match="no such file or folder"):
            import_model(path, tmp_path / "model")


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
    assert all(sources._KNOWN.match(row.name) for row in table(config))
    config.image.center = True
    assert all(sources._KNOWN.match(row.name) for row in table(config))
