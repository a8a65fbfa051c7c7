"""Grey values and equalised histograms of the files that a model is given."""

import json
import shutil

import cv2
import numpy as np
import pytest

from afloc_jax.cli import main
from afloc_jax.errors import UsageError, UserError
from afloc_jax.evaluation.localization import score_files
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.truth.pictures import Pictures
from afloc_jax.export.source import read_source, write_inputs_reader
from afloc_jax.files import Path
from afloc_jax.inference.model import load
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.card import render_card
from afloc_jax.weights.config import FolderConfig, Preprocessing
from data_pipelines.images import equalized, read_image
from data_pipelines.prepared import prepare
from tests.inference.conftest import tiny_config

PROMPT = "small left pleural effusion"


@pytest.fixture
def film(tmp_path):
    """A picture in colour, of which the rules make different grey values."""
    path = tmp_path / "film.jpg"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8))
    assert (read_image(path) != cv2.imread(str(path), 0)).any()
    return path


def as_trained(folder, target, **preprocessing):
    """The model folder as if it had been trained on images that were read in another way."""
    shutil.copytree(folder, target)
    config = json.loads((target / "config.json").read_text())
    config["preprocessing"] |= preprocessing
    (target / "config.json").write_text(json.dumps(config))
    return target


def test_compatible_maps_are_those_of_opencvs_grey_values(folder, model, film, tmp_path):
    for compatible, grey in ((True, cv2.imread(str(film), 0)), (False, read_image(film))):
        expected = model.localize([grey], [PROMPT], compatible=compatible)[0][0].heatmap
        found = model.localize([film], [PROMPT], compatible=compatible)[0][0].heatmap
        np.testing.assert_array_equal(found, expected)
        flag = ["--compatible"] if compatible else []
        assert main(["localize", str(folder), str(film), "--prompt", PROMPT, "--out", str(tmp_path / "o"), *flag]) == 0
        np.testing.assert_array_equal(np.load(tmp_path / "o" / "film.0.heatmap.npy"), expected)
    other = model.localize([film], [PROMPT], compatible=True)[0][0].heatmap
    assert (other != expected).any()


def test_a_model_reads_images_as_it_was_trained(folder, model, film, tmp_path):
    grey = cv2.imread(str(film), 0)
    trained = load(as_trained(folder, tmp_path / "model", grey="cv2", equalize="cv2"), batch_size=4)
    expected = model.localize([equalized(grey, "cv2")], [PROMPT])[0][0].heatmap
    for image in (film, grey):  # an array is equalised as well
        np.testing.assert_array_equal(trained.localize([image], [PROMPT])[0][0].heatmap, expected)
    assert "equalised histogram (cv2), longest side to 224 pixels" in render_card(trained.config)
    assert "One channel, longest side to 224 pixels" in render_card(model.config)
    with pytest.raises(UsageError, match=r"data\.equalize = 'cv2', and the reader of images in this export does not"):
        write_inputs_reader(read_source(tmp_path / "model"), Path(tmp_path))


def test_the_folder_states_what_was_chosen_and_nothing_else():
    config = tiny_config()
    assert set(FolderConfig.of_run(RunConfig.from_config(config), {}).stored()["preprocessing"]) == {
        "image_size", "geometry", "channels", "mean", "std"
    }  # fmt: skip
    config.data.grey, config.data.equalize = "cv2", "release"
    folder = FolderConfig.of_run(RunConfig.from_config(config), {})
    assert folder.preprocessing == Preprocessing(224, "cv2", "release")
    assert Preprocessing.read(folder.stored()["preprocessing"]) == folder.preprocessing
    config.data.grey, config.data.builder = "luma", {"grey": "cv2"}  # as arguments of the builder
    assert FolderConfig.of_run(RunConfig.from_config(config), {}).preprocessing.grey == "cv2"


def test_score_shows_pictures_as_it_was_asked_to_read_them(film):
    truth = type("Named", (), {"image": "film", "height": 0, "mask": np.zeros((90, 90))})()
    for rule in ("luma", "cv2"):
        square = Pictures(film.parent, rule).square(truth)
        np.testing.assert_array_equal(square[:, 10:80], read_image(film, rule))


def test_score_reads_the_pictures_as_the_release_where_it_is_compatible(film, monkeypatch):
    rules = []
    monkeypatch.setattr(score_files, "Pictures", lambda folder, rule: rules.append(rule))
    for compatible in (True, False):
        with pytest.raises(UserError, match=r"gone\.json"):
            settings = LocalizationSettings(compatible=compatible)
            score_files.score_files("gone.json", "gone.npz", film.parent / "out", settings, images=film.parent)
    assert rules == ["cv2", "luma"]


def test_compatible_evaluation_takes_records_read_as_in_the_release_and_says_when_there_are_none(tmp_path, capsys):
    (tmp_path / "raw" / "images").mkdir(parents=True)
    films = np.random.default_rng(0).integers(0, 256, (6, 40, 30, 3), dtype=np.uint8)
    rows = ["image,text,split", *(f"{n}.png,Left effusion. No edema.,test" for n in range(6))]
    (tmp_path / "raw" / "pairs.csv").write_text("\n".join(rows))
    for number, pixels in enumerate(films):
        cv2.imwrite(str(tmp_path / "raw" / "images" / f"{number}.png"), pixels)
    default = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw").folder
    settings = LocalizationSettings(name="pairs", directory=str(tmp_path / "out"), compatible=True)
    assert settings.open("test").folder == default
    said = capsys.readouterr().err
    assert said.startswith("afloc: pairs: --compatible reads grey values as cv2.imread(path, 0), but these records")
    assert said.count("\n") == 1 and said.endswith("--builder grey=cv2\n")

    released = prepare("pairs", tmp_path / "out", raw=tmp_path / "raw", builder={"grey": "cv2"}).folder
    places = {"directory": str(tmp_path / "out"), "raw": str(tmp_path / "raw")}
    raw = LocalizationSettings(name="pairs", compatible=True, **places)
    assert released != default and {settings.open("test").folder, raw.open("test").folder} == {released}
    own = LocalizationSettings(name="pairs", directory=str(tmp_path / "out"))
    assert own.open("test").folder == default
    assert capsys.readouterr().err == ""
