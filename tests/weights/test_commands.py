"""`afloc import` and `afloc export`: there and back again, and what they say."""

import pytest
from safetensors.numpy import load_file

from afloc_jax.cli import main
from tests.inference.conftest import folder  # noqa: F401 (a fixture)
from tests.weights.test_importers import checkpoint, omegaconf, tokenizer_folder, whole_state


def test_import_export_import_leaves_every_tensor_bit_identical(tmp_path, capsys):
    """Through the checkpoint that the published code loads."""
    config = omegaconf(vision={"model_name": "resnet_50", "freeze_cnn": False})
    released = checkpoint(tmp_path / "released.ckpt", whole_state("resnet50"), config=config)
    words = str(tokenizer_folder(tmp_path / "words"))
    one, exported, two = (str(tmp_path / name) for name in ("one", "exported", "two"))
    assert main(["import", str(released), one, "--tokenizer", words]) == 0
    said = capsys.readouterr().out
    assert "resnet50 and BERT from released.ckpt" in said and "attention head" in said
    assert main(["export", one, exported, "--format", "afloc-ckpt"]) == 0
    assert "check/check.py compares it with ours" in capsys.readouterr().out
    assert main(["import", f"{exported}/model.ckpt", two, "--tokenizer", words]) == 0
    first, second = (load_file(f"{path}/model.safetensors") for path in (one, two))
    assert first.keys() == second.keys() and len(first) > 300
    for name in first:
        assert first[name].tobytes() == second[name].tobytes(), name


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["export", "{folder}", "{}/out", "--format", "pickle"], 2, "choose one of safetensors, small, afloc-ckpt"),
        (["export", "{folder}", "{}/out", "--format", "afloc-ckpt"], 2, "resnet_small"),
        (["export", "{}/none", "{}/out", "--format", "safetensors"], 1, "no such model folder"),
        (["import", "{}/none.ckpt", "{}/model"], 1, "none.ckpt"),
        (["import", "{}/text.ckpt", "{}/model"], 1, "text.ckpt"),
    ],
)
def test_failures_say_what_to_do_in_one_line(arguments, status, words, folder, tmp_path, capsys):  # noqa: F811
    (tmp_path / "text.ckpt").write_text("not a checkpoint")
    assert main([argument.format(tmp_path, folder=folder) for argument in arguments]) == status
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists() and not (tmp_path / "model").exists()
