"""What an import refuses, in one line that says what to do; and names on the hub."""

import json

import pytest
import torch
from foreign_weights import PIECES, backbone_file, bert_folder, checkpoint, tokenizer_folder, whole_state

from afloc_jax.errors import UserError
from afloc_jax.weights import sources
from afloc_jax.weights.importers import import_model


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
