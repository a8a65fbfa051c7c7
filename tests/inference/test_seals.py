"""The seal of a model folder: which changes are refused, which are told, and what `afloc verify` says of them."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.files import Path
from afloc_jax.seals import NewerFormat, Verification, read_seal
from afloc_jax.training.verify import verify
from afloc_jax.weights.folder import load_model, update_card


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "model"))


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 1
    path.write_bytes(bytes(content))


def exchange_two_words(copy):
    path = copy / "tokenizer.json"
    text = path.read_text().replace('"left"', '"!"').replace('"right"', '"left"').replace('"!"', '"right"')
    assert text != path.read_text()
    path.write_text(text)


def test_a_folder_is_sealed_with_the_sha256_of_every_file_but_its_card(copy):
    names = {path.name for path in copy.iterdir()} - {"README.md", "seal.json"}
    assert {"model.safetensors", "tokenizer.json", "vocab.txt", "config.json"} <= names
    assert read_seal(copy) == {name: hashlib.sha256((copy / name).read_bytes()).hexdigest() for name in names}
    assert [verdict.line for verdict in verify(copy)] == [".: intact"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: flip_a_bit(f / "model.safetensors"), "model.safetensors is not the file that was sealed"),
        (exchange_two_words, "tokenizer.json is not the file that was sealed"),
        (lambda f: (f / "vocab.txt").unlink(), "vocab.txt is missing or unreadable"),
        (lambda f: ((f / "vocab.txt").unlink(), os.mkfifo(f / "vocab.txt")), "vocab.txt is missing or unreadable"),
        (lambda f: (f / "unseen_pieces.txt").write_text("effusion\n"), "unseen_pieces.txt is not sealed"),
        (lambda f: shutil.copy(f / "vocab.txt", f / "other-vocab.txt"), "other-vocab.txt is not sealed"),
        (lambda f: (f / "seal.json").write_text("{"), "not valid JSON"),
        (lambda f: (f / "seal.json").write_text('{"files": {"../x": "00"}}'), "is not a seal"),
        (lambda f: (f / "seal.json").write_text('{"files": {"vocab.txt": 7}}'), "is not a seal"),
        (lambda f: (f / "seal.json").write_text('{"files": {}, "format_version": "1"}'), "format_version is none that"),
    ],
)
def test_other_weights_and_other_words_are_refused(copy, change, words, capsys):
    change(copy)
    with pytest.raises(UserError, match=words) as caught:
        load_model(copy)
    assert str(copy) in str(caught.value) and "\n" not in str(caught.value)
    assert "copy the folder again" in str(caught.value)
    assert main(["verify", str(copy)]) == 1
    assert capsys.readouterr().out.startswith(".: damaged (")


@pytest.mark.parametrize(("name", "content"), [("config.json", "{"), ("run.json", "[]"), ("finished.json", '{"a": 1}')])
def test_notes_of_a_run_that_cannot_be_read_are_damaged(name, content, copy, capsys):
    run = copy.parent
    for note in ("config.json", "run.json"):
        (run / note).write_text("{}")
    assert "json: damaged" not in "".join(verdict.line for verdict in verify(run))
    (run / name).write_text(content)
    assert main(["verify", str(run)]) == 1
    assert f"{name}: damaged ({run / name}: " in capsys.readouterr().out


def test_an_edited_config_is_read_with_a_warning(copy, capsys):
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"name": "renamed"}))
    assert load_model(copy).config.name == "renamed"
    warning = f"afloc: warning: {path} is not the file that was sealed; it is used as it is\n"
    assert capsys.readouterr().err == warning
    assert main(["verify", str(copy), "--json"]) == 0
    verdict = {"part": ".", "state": "edited", "why": f"{path} is not the file that was sealed"}
    assert json.loads(capsys.readouterr().out) == [verdict]


def test_verify_calls_a_folder_damaged_whose_config_no_command_reads(copy, capsys):
    path = copy / "config.json"
    stored = json.loads(path.read_text())
    for wrong in ({"format_version": 9}, {"seed": "x"}):
        path.write_text(json.dumps(stored | wrong))
        assert main(["verify", str(copy)]) == 1
        assert capsys.readouterr().out.startswith(f".: damaged ({path}")


def test_a_folder_without_a_seal_is_read_as_before(copy, capsys):
    (copy / "seal.json").unlink()
    load_model(copy)
    assert capsys.readouterr().err == ""
    assert main(["verify", str(copy)]) == 0
    assert capsys.readouterr().out == ".: not sealed (it has no seal.json)\n"


def test_the_card_is_not_sealed_and_results_renew_the_seal(copy, capsys):
    (copy / "README.md").write_text("mine")
    (copy / "notes.txt").write_text("a file of the user")
    update_card(copy, {"results": {"iou": 0.5}})
    load_model(copy)
    assert capsys.readouterr().err == ""
    assert [verdict.state for verdict in verify(copy)] == ["intact"]


def test_a_seal_of_a_later_version_says_what_to_do(copy):
    path = copy / "seal.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 2}))
    with pytest.raises(NewerFormat, match=r"seal\.json has format_version 2, .* up to 1; update afloc_jax"):
        load_model(copy)


def test_verify_refuses_other_folders(tmp_path, capsys):
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no model folder and no working directory" in capsys.readouterr().err


def test_a_model_gives_no_result_from_weights_that_are_not_the_sealed_ones(copy):
    """Loading does not wait for the hashes."""
    flip_a_bit(copy / "model.safetensors")
    film = np.zeros((40, 60), np.uint8)
    for ask in (
        lambda model: model.embed_texts(["left effusion"]),
        lambda model: model.embed_images([film]),
        lambda model: model.localize([film], ["left effusion"]),
        lambda model: model.classify([film], ["effusion"]),
    ):
        model = afloc_jax.load(copy)
        for _ in range(2):
            with pytest.raises(UserError, match=r"model\.safetensors is not the file that was sealed"):
                ask(model)


def test_two_threads_may_wait_for_one_comparison(copy):
    class Hashed:
        def result(self):
            verification._sealed = None  # as the other thread, which was faster, does
            return "not this"

    verification = Verification(copy, lambda name: True).begin()
    verification._hashed = dict.fromkeys(verification._sealed, Hashed())
    with pytest.raises(UserError, match="is not the file that was sealed"):
        verification.finish()
