"""Images for a text and texts for an image, from files."""

import csv

import cv2
import numpy as np
import pytest

import afloc_jax
from afloc_jax.cli import main


@pytest.fixture
def chests(tmp_path, pictures):
    (tmp_path / "chests" / "deep").mkdir(parents=True)
    for name, picture in zip(("a.png", "b.jpg", "deep/c.png"), pictures, strict=False):
        cv2.imwrite(str(tmp_path / "chests" / name), picture)
    (tmp_path / "chests" / "notes.txt").write_text("not an image")
    return tmp_path / "chests"


def test_both_directions_rank_by_cosine(folder, chests, tmp_path, capsys):
    (tmp_path / "texts.txt").write_text("small left effusion\n\nedema\nright nodule\nedema\n")
    out = tmp_path / "answers.csv"
    call = [
        "retrieve",
        str(folder),
        "--images",
        str(chests),
        "--query",
        "nodule",
        "--texts",
        str(tmp_path / "texts.txt"),
    ]
    assert main([*call, "--top", "2", "--out", str(out)]) == 0
    with open(out, newline="") as file:
        rows = list(csv.DictReader(file))
    model = afloc_jax.load(folder)
    files = [chests / name for name in ("a.png", "b.jpg", "deep/c.png")]
    texts = ["nodule", "small left effusion", "edema", "right nodule"]
    images, reports = model.embed_images(files).whole, model.embed_texts(texts).report
    cosine = (images @ reports.T) / np.linalg.norm(images, axis=1)[:, None] / np.linalg.norm(reports, axis=1)
    found = [row for row in rows if row["direction"] == "text_to_image"]
    best = np.argsort(-cosine[:, 0])[:2]
    assert [row["found"] for row in found] == [str(files[i]) for i in best]
    np.testing.assert_allclose([float(row["similarity"]) for row in found], cosine[best, 0], atol=1e-5)
    for i, path in enumerate(files):
        mine = [row["found"] for row in rows if row["query"] == str(path)]
        assert mine == [texts[1:][k] for k in np.argsort(-cosine[i, 1:])[:2]]
    assert capsys.readouterr().out.startswith("nodule\n    1 ")


def test_an_image_that_cannot_be_read_is_named_and_the_rest_is_answered(folder, chests, capsys):
    (chests / "broken.png").write_text("no image")
    assert main(["retrieve", str(folder), "--images", str(chests), "--query", "edema"]) == 1
    said = capsys.readouterr()
    assert "broken.png: not an image" in said.err and said.out.count(str(chests)) == 3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--images", "{}"], "nothing to retrieve"),
        (["--images", "{}", "--query", " . "], "empty after cleaning"),
        (["--images", "{}/none", "--query", "edema"], "no such folder"),
        (["--images", "{}/deep/empty", "--query", "edema"], "holds no image"),
        (["--images", "{}", "--texts", "{}/none.txt"], "No such file"),
        (["--images", "{}", "--texts", "{}/blank.txt"], "holds no text"),
        (["--images", "{}", "--query", "edema", "--top", "0"], "at least 1"),
    ],
)
def test_a_wrong_call_exits_2_with_one_line(folder, chests, options, words, capsys):
    (chests / "deep" / "empty").mkdir()
    (chests / "blank.txt").write_text("\n \n")
    assert main(["retrieve", str(folder), *(option.format(chests) for option in options)]) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1
