"""Models that have seen drawings alone say so, in their folder, in what they write, on pages, and on stderr."""

import json
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from starlette.testclient import TestClient

from afloc_jax.cli import main
from afloc_jax.evaluation.page import write_report
from afloc_jax.inference.model import load
from afloc_jax.serve.answers import about
from afloc_jax.serve.app import make_app
from afloc_jax.training.settings import RunConfig
from afloc_jax.weights.config import FolderConfig, ModelFolderError, read_config
from afloc_jax.weights.folder import load_model, save_model, update_card
from data_pipelines.builders.phantom import generate
from data_pipelines.building.arguments import arguments_of
from data_pipelines.building.build import _BUILDERS, Call
from data_pipelines.settings import DataSettings
from data_pipelines.what_images import DRAWN, DRAWN_SIDE, IMAGES, images_of, only_drawings
from tests.serve.asking import HERE, asking


@pytest.fixture
def trained(folder, tmp_path):
    """A function that makes the folder of a model which was trained on some data sets."""

    def make(*names):
        target = tmp_path / "-".join(["model", *names])
        shutil.copytree(folder, target)
        stored = json.loads((target / "config.json").read_text())
        (target / "config.json").write_text(json.dumps(stored | {"trained_on": list(names)}))
        update_card(target, {})  # writes README.md again
        return target

    return make


@pytest.fixture
def pictures(tmp_path):
    """A phantom as a file, and an image of another size."""
    phantom, other = tmp_path / "phantom.png", tmp_path / "film.png"
    cv2.imwrite(str(phantom), np.asarray(generate(0, "test", 0).image))
    cv2.imwrite(str(other), np.random.default_rng(0).integers(0, 256, (90, 121), dtype=np.uint8))
    return phantom, other


def test_every_data_set_says_what_its_images_are_and_the_drawn_one_needs_no_files():
    names = sorted(path.parent.name for path in _BUILDERS.glob("*/*_dataset_builder.py"))
    assert sorted(IMAGES) == names
    drawn = [name for name in names if "raw" not in arguments_of(Call.of(name, "x", "", {}).builder_class)]
    assert drawn == [DRAWN]
    assert np.asarray(generate(0, "test", 0).image).shape == (DRAWN_SIDE, DRAWN_SIDE)
    assert images_of("elsewhere").startswith("those of elsewhere")


def test_a_model_has_seen_drawings_alone_only_if_it_is_known_and_nothing_else_was_seen():
    assert only_drawings(["phantom"])
    assert not any(only_drawings(names) for names in ([], ["pairs"], ["mimic_cxr", "phantom"], ["unknown", "phantom"]))


def test_a_folder_keeps_what_the_weights_were_trained_on_with_what_they_started_from(folder, tmp_path):
    _, variables, tokenizer = load_model(folder)
    run = replace(RunConfig.from_config(_config(folder)), data=DataSettings(dataset="phantom"))
    save_model(tmp_path / "a", variables, run, tokenizer)
    assert read_config(tmp_path / "a").trained_on == ("phantom",)
    save_model(tmp_path / "b", variables, run, tokenizer, before=("mimic_cxr", "phantom"))
    assert read_config(tmp_path / "b").trained_on == ("mimic_cxr", "phantom")


def _config(folder):
    from tests.inference.conftest import tiny_config

    config = tiny_config()
    config.model.text.bert.vocab_size = load_model(folder).tokenizer.get_vocab_size()
    return config


def test_folders_of_earlier_versions_load_and_their_card_names_the_data_set(trained):
    place = trained("phantom")
    stored = json.loads((place / "config.json").read_text())
    del stored["trained_on"]
    for data, expected in (({"data set": "phantom", "training pairs": 4000}, ("phantom",)), ("four sentences", ())):
        (place / "config.json").write_text(json.dumps(stored | {"card": {"data": data}}))
        assert load(place).config.trained_on == expected
    (place / "config.json").write_text(json.dumps(stored | {"trained_on": "phantom"}))
    with pytest.raises(ModelFolderError, match="trained_on = 'phantom': must be a list"):
        read_config(place)
    assert "trained_on" not in FolderConfig().stored()


def test_the_card_of_such_a_model_says_so_first_and_in_its_intended_use(trained):
    card = (trained("phantom") / "README.md").read_text()
    assert card.index("trained on drawings of chests") < card.index("An image encoder")
    assert "Not for radiographs" in card and "on chest radiographs" not in card
    other = (trained("mimic_cxr") / "README.md").read_text()
    assert "drawings" not in other and "on chest radiographs" in other


def test_localize_classify_and_retrieve_warn_of_images_that_are_no_drawings(trained, pictures, tmp_path, capsys):
    phantom, other = map(str, pictures)
    place = str(trained("phantom"))
    asked = [phantom, other, "--prompt", "nodule", "--out", str(tmp_path / "out")]
    assert main(["localize", place, *asked]) == 0
    assert "trained on drawings of chests (phantoms) alone, and 1 of 2 images is none" in capsys.readouterr().err
    content = json.loads((tmp_path / "out" / "localize.json").read_text())
    assert content["model"]["trained_on"] == ["phantom"]
    assert ["warning" in image for image in content["images"]] == [False, True]
    scores = tmp_path / "scores.csv"
    assert main(["classify", place, phantom, other, "--class", "nodule", "--out", str(scores)]) == 0
    assert "1 of 2 images is none" in capsys.readouterr().err
    written = json.loads(scores.with_suffix(".json").read_text())
    assert written["trained_on_drawings_but_these_are_none"] == [other]
    assert main(["retrieve", place, "--images", str(tmp_path / "*.png"), "--query", "nodule"]) == 0
    assert "1 of 2 images is none" in capsys.readouterr().err
    assert main(["localize", place, phantom, "--prompt", "nodule", "--out", str(tmp_path / "drawn")]) == 0
    assert "drawings" not in capsys.readouterr().err
    for names in (("mimic_cxr",), ("mimic_cxr", "phantom")):
        assert main(["localize", str(trained(*names)), *asked]) == 0
        assert "drawings" not in capsys.readouterr().err
        content = json.loads((tmp_path / "out" / "localize.json").read_text())
        assert not any("warning" in image for image in content["images"])


def page_of(folder):
    """The page in the browser with that model."""
    model = load(folder)
    return TestClient(make_app(asking([model]), about([model], ["tiny"], [""])), base_url=HERE)


def test_the_page_in_the_browser_warns_too(trained, pictures):
    phantom, other = (path.read_bytes() for path in pictures)
    client = page_of(trained("phantom"))
    assert '"drawings": true' in client.get("/").text
    answers = [client.post("/picture", content=image).json()["warning"] for image in (phantom, other)]
    assert answers[0] == "" and "this image is none" in answers[1]
    assert "this image is none" in client.post("/localize?prompt=nodule", content=other).json()["warning"]
    known = page_of(trained("mimic_cxr"))
    assert '"drawings": false' in known.get("/").text
    assert known.post("/picture", content=other).json()["warning"] == ""


@pytest.mark.parametrize("name", ["phantom", "rsna", ""])
def test_the_first_lines_of_a_page_say_what_the_images_are(name, tmp_path):
    """The page of a model that was trained on drawings; `afloc score` knows no data set."""
    interval = {"mean": 0.5, "lower": 0.4, "upper": 0.6}
    table = {"overall": interval, "per_category": {"edema": interval}, "per_threshold": {}}
    provenance = {"trained_on": ["phantom"]} if name else {"truth": {"file": "truth.json", "sha256": "0"}}
    summary = {"protocol": "afloc", "compatible": False, "n": 3, "title": "a set", "settings": {"name": name}}
    summary |= {"provenance": provenance, "metrics": {"pointing": table}}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    page = write_report(tmp_path).read_text()
    start = page[page.index("<h1>") : page.index('class="lede"')]
    assert f"Images of a set: {IMAGES[name]}." in start if name else "those that truth.json names" in start
    assert ("The model was trained on drawings (phantoms) alone" in start) == (name == "rsna")
