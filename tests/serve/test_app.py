"""`afloc serve`: what the application answers, and what it refuses."""

import base64
import dataclasses
import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image

from afloc_jax.inference.class_prompts import read_prompt_set
from afloc_jax.inference.figures import OPACITY, figure
from afloc_jax.inference.model import Model
from afloc_jax.inference.towers import initial_variables
from afloc_jax.serve.answers import answer
from afloc_jax.serve.limits import LIMITS
from afloc_jax.serve.page import make_page
from afloc_jax.serve.questions import Question
from afloc_jax.serve.server import LOCAL_NAMES
from afloc_jax.weights.calibration import Calibration, Pooled
from afloc_jax.weights.config import FolderConfig
from data_pipelines.images import read_image
from tests.data_pipelines.test_images import dicom_file
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)
from tests.serve.asking import HERE, client, smooth_picture, told, write_image

PHRASES = ["Small left effusion.", "nodule"]


@pytest.fixture
def page(model):  # noqa: F811
    return client(model, hosts=LOCAL_NAMES)


def from_uri(uri):
    kind, data = uri.split(",")
    assert kind == "data:image/png;base64"
    return cv2.imdecode(np.frombuffer(base64.b64decode(data), np.uint8), cv2.IMREAD_UNCHANGED)


def halved(picture):
    """Means of 2 x 2 pixels."""
    height, width = picture.shape
    return picture.reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))


@pytest.mark.parametrize("kind", ["jpeg", "16-bit png, twice as large as what is shown", "dicom"])
def test_the_answer_is_what_localize_gives_for_the_same_file(kind, page, model, tmp_path):  # noqa: F811
    path = write_image(kind, tmp_path / "a")
    answer = page.post("/localize", params={"prompt": PHRASES, "threshold": 0.2}, content=path.read_bytes())
    assert answer.status_code == 200
    content = answer.json()
    expected = model.localize([path], PHRASES, 0.2)[0]
    shrink = halved if kind.startswith("16") else np.asarray
    assert (content["height"], content["width"]) == expected[0].heatmap.shape
    assert content["threshold"] == 0.2
    np.testing.assert_allclose(from_uri(content["picture"]), shrink(read_image(path)), atol=0.51)
    for got, wanted in zip(content["prompts"], expected, strict=True):
        assert got["prompt"] == wanted.prompt
        assert got["similarity"] == pytest.approx(wanted.similarity, abs=1e-6)
        assert got["boxes"] == wanted.boxes.tolist()
        low, high = wanted.heatmap.min(), wanted.heatmap.max()
        assert (got["lowest"], got["highest"]) == pytest.approx((low, high), abs=1e-6)
        scaled = shrink((wanted.heatmap - low) / (high - low))
        np.testing.assert_allclose(from_uri(got["heatmap"]) / 255, scaled, atol=1 / 255)
    assert len({json.dumps(got["boxes"]) for got in content["prompts"]}) == 2  # the phrases are told apart


def test_maps_are_made_as_the_command_was_told(model, tmp_path):  # noqa: F811
    path, other = write_image("jpeg", tmp_path / "a"), model.with_maps(sharpen=True, prune=True, windows=2)
    page = client(other, hosts=LOCAL_NAMES)
    (got,) = page.post("/localize", params={"prompt": PHRASES[:1]}, content=path.read_bytes()).json()["prompts"]
    (wanted,), (plain,) = (one.localize([path], PHRASES[:1])[0] for one in (other, model))
    assert got["prompt"] == wanted.prompt == "left effusion"
    scaled = (wanted.heatmap - wanted.heatmap.min()) / np.ptp(wanted.heatmap)
    np.testing.assert_allclose(from_uri(got["heatmap"]) / 255, scaled, atol=1 / 255)
    assert not np.allclose(scaled, (plain.heatmap - plain.heatmap.min()) / np.ptp(plain.heatmap), atol=0.05)
    assert '"sharpen": true, "prune": true, "windows": 2' in page.get("/").text


def test_a_calibrated_model_tells_presence(model, tmp_path, monkeypatch):  # noqa: F811
    data, limits = write_image("jpeg", tmp_path / "a").read_bytes(), LIMITS
    for bias, absent in ((-9.0, True), (9.0, False)):
        pooled = Pooled(weights=(1.0, 0.0, 0.0), bias=bias)
        monkeypatch.setattr(model, "calibration", Calibration(pooled=pooled))
        content = json.loads(answer([model], Question("localize", ("edema", "no edema"), 0.3), data, limits).content)
        assert content["calibrated"] is True
        there, denied = content["prompts"]
        assert (there["absent"], denied["absent"], denied["present"]) == (absent, False, None)
        assert (there["present"] < 0.01) is absent
        assert there["boxes"]  # what is drawn is the page's choice
        content = json.loads(answer([model], Question("classify", ("edema",)), data, limits).content)
        assert content["classes"][0]["present"] == pytest.approx(there["present"], abs=1e-4)
    monkeypatch.setattr(model, "calibration", None)
    content = json.loads(answer([model], Question("localize", ("edema",), 0.3), data, limits).content)
    assert (content["calibrated"], content["prompts"][0]["present"]) == (False, None)


def test_nothing_of_an_image_is_kept_after_its_answer(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    model.localize([path], ["edema"])
    assert model._images.kept()
    assert page.post("/localize", params={"prompt": "edema"}, content=path.read_bytes()).status_code == 200
    assert not model._images.kept()


def test_threshold_and_headers_have_defaults(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    answer = page.post("/localize", params={"prompt": "edema"}, content=path.read_bytes())
    assert answer.json()["prompts"][0]["boxes"] == model.localize([path], ["edema"])[0][0].boxes.tolist()
    assert answer.headers["cache-control"] == "no-store"


def test_a_dicom_file_without_its_header_is_read_by_its_content_type(page, tmp_path):
    whole = write_image("dicom", tmp_path / "a").read_bytes()
    as_dicom = page.post("/picture", content=whole[132:], headers={"content-type": "application/dicom"})
    assert as_dicom.json() == page.post("/picture", content=whole).json()
    assert page.post("/picture", content=whole[132:]).status_code == 400


def test_probabilities_are_those_of_classify(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    answer = page.post("/classify", params={"class": ["pneumonia", "edema"]}, content=path.read_bytes()).json()
    expected = model.classify([path], ["pneumonia", "edema"])[0]
    assert [entry["class"] for entry in answer["classes"]] == ["pneumonia", "edema"]
    assert [entry["probability"] for entry in answer["classes"]] == pytest.approx(expected.tolist(), abs=1e-6)


def test_classes_are_asked_for_by_a_prompt_set_of_the_package_and_by_no_file(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    asked = {"class": ["pneumonia", "edema"], "prompts": "chest"}
    answer = page.post("/classify", params=asked, content=path.read_bytes()).json()
    expected = model.classify([path], ["pneumonia", "edema"], read_prompt_set("chest"))[0]
    assert [entry["probability"] for entry in answer["classes"]] == pytest.approx(expected.tolist(), abs=1e-6)
    (tmp_path / "mine.json").write_text('{"edema": ["edema"]}')
    answer = page.post("/classify", params={**asked, "prompts": str(tmp_path / "mine.json")}, content=path.read_bytes())
    assert answer.status_code == 400 and "there are chest" in answer.json()["error"]


def test_what_the_model_does_not_understand_is_told_to_the_page(page, tmp_path):
    data = write_image("jpeg", tmp_path / "a").read_bytes()
    prompts = ["nodule", "small \u0436\u0443\u043a", "small left effusion " * 9]
    answer = page.post("/localize", params={"prompt": prompts}, content=data).json()
    assert [found["unknown_words"] for found in answer["prompts"]] == [[], ["\u0436\u0443\u043a"], []]
    assert [found["truncated"] for found in answer["prompts"]] == [False, False, True]
    answer = page.post("/classify", params={"class": ["pneumonia", "\u0436\u0443\u043a"]}, content=data).json()
    assert [found["unknown_words"] for found in answer["classes"]] == [[], ["\u0436\u0443\u043a"]]
    assert not any(found["truncated"] for found in answer["classes"])
    shown = page.get("/").text
    assert "The model does not know" in shown and 'id="classes-note"' in shown


@pytest.mark.parametrize(
    ("address", "body", "words"),
    [
        ("/localize", None, "no prompt given"),
        ("/localize?prompt=edema&prompt=%20.", None, "empty after cleaning"),
        ("/localize?prompt=edema&threshold=high", None, "between -1 and 1"),
        ("/localize?prompt=edema&threshold=2", None, "between -1 and 1"),
        ("/localize?prompt=edema&threshold=nan", None, "between -1 and 1"),
        ("/localize?" + "&".join(["prompt=edema"] * 17), None, "at most 16"),
        ("/localize?prompt=edema", b"", "the file is empty"),
        ("/localize?prompt=edema", b"not an image", "not an image in a known format"),
        ("/picture", b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
        ("/classify?class=", None, "empty after cleaning"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(address, body, words, page, tmp_path):
    body = write_image("jpeg", tmp_path / "a").read_bytes() if body is None else body
    answer = page.post(address, content=body)
    assert answer.status_code == 400
    assert re.search(words, answer.json()["error"])
    assert "\n" not in answer.json()["error"]


def test_a_file_above_the_limit_is_refused_also_when_its_size_is_not_declared(model):  # noqa: F811
    small = client(model, limits=dataclasses.replace(LIMITS, body=1000))
    for content in (bytes(1001), iter([bytes(600), bytes(600)]), bytes(10_000)):
        answer = small.post("/picture", content=content)
        assert answer.status_code == 413
        assert "too large" in answer.json()["error"]
    assert "not an image" in small.post("/picture", content=bytes(1000)).json()["error"]


def test_only_names_of_this_machine_and_the_page_itself_are_answered(page, tmp_path):
    for host in ("localhost:8000", "127.0.0.1:8000", "[::1]:8000", "localhost"):
        assert page.get("/", headers={"host": host}).status_code == 200
    for host in ("rebound.example", "127.0.0.1.example:8000", ""):
        assert page.get("/", headers={"host": host}).status_code == 400
    body = write_image("jpeg", tmp_path / "a").read_bytes()
    for origin, status in ((HERE, 200), ("http://evil.example", 403), ("null", 403), ("http://127.0.0.1:9", 403)):
        assert page.post("/picture", content=body, headers={"origin": origin}).status_code == status


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(page):
    answer = page.get("/")
    text = answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert not re.search(r"https?:|url\(|@import|import\(|\ssrc=|{{", text)
    assert re.findall(r'<link[^>]*href="([^"]*)"', text) == ["data:,"]
    assert re.findall(r"fetch\((.*?)[,)]", text) == ["`${route}?${query}`"]
    settings = json.loads(re.search(r'id="settings">(.*?)</script>', text).group(1))
    assert [one["name"] for one in settings["models"]] == ["tiny"]
    assert len(settings["colours"]) == 256 and settings["opacities"] == [*OPACITY]
    assert settings["sets"]["chest"]["pneumonia"]["severity"] == ["", "mild", "extensive"]
    for control in re.findall(r'<(?:input|select)[^>]*id="([\w-]+)"', text):  # a label, around it or for it
        around = rf'<label[^>]*>[^<]*<(?:input|select)[^>]*id="{control}"'
        assert f'for="{control}"' in text or re.search(around, text), control


def test_a_models_name_cannot_leave_its_place_in_the_page():
    text = make_page({"model": "</script><script>alert(1)//"})
    assert "<script>alert" not in text
    assert json.loads(re.search(r'id="settings">(.*?)</script>', text).group(1))["model"].startswith("</script>")


def test_a_defect_is_told_without_what_was_asked(model, capfd, tmp_path):  # noqa: F811
    def localize(*_):
        raise RuntimeError("cannot look for the secret phrase")

    body = write_image("jpeg", tmp_path / "a").read_bytes()
    for debug in (False, True):
        broken = client(
            SimpleNamespace(localize=localize, config=FolderConfig(), forget_images=list),
            debug=debug,
            known=told(model),
        )
        answer = broken.post("/localize", params={"prompt": "secret"}, content=body)
        assert answer.status_code == 500
        assert "RuntimeError" in answer.json()["error"] and "secret" not in answer.text
        assert ("secret phrase" in "".join(capfd.readouterr())) is debug


def saved(kind):
    file = io.BytesIO()
    Image.fromarray(smooth_picture(40, 30, 256).astype(np.uint8)).save(file, kind)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "EPS", "WEBP", "PPM"])
def test_the_page_decodes_png_jpeg_and_dicom_alone(kind, page):
    answer = page.post("/picture", content=saved(kind))
    assert answer.status_code == 400
    assert "not an image in a known format" in answer.json()["error"]


def test_an_image_of_too_many_pixels_and_a_text_of_too_many_letters_are_refused(page):
    assert LIMITS.pixels > 30_000_000  # mammograms
    bomb = io.BytesIO()
    Image.new("L", (LIMITS.pixels // 1024 + 1, 1024)).save(bomb, "PNG")
    assert len(bomb.getvalue()) < 100_000
    answer = page.post("/picture", content=bomb.getvalue())
    assert answer.status_code == 400 and "33,554,432 pixels is too large" in answer.json()["error"]
    for address, key in (("/localize", "prompt"), ("/classify", "class")):
        answer = page.post(address, params={key: ["edema", "a" * 1001]}, content=saved("PNG"))
        assert answer.status_code == 400 and "more than 1,000 characters" in answer.json()["error"]


def test_decoding_has_a_bounded_memory(tmp_path):
    """In a process of its own: one that has freed much memory takes it again without asking for more."""
    Image.new("RGB", (5000, 5000)).save(tmp_path / "large.png")  # 75 MB when it is decoded
    program = """
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from afloc_jax.serve.answers import answer
from afloc_jax.serve.limits import LIMITS
from afloc_jax.serve.questions import Question
config = SimpleNamespace(preprocessing=SimpleNamespace(grey="luma"), trained_on=())
model = SimpleNamespace(config=config, forget_images=list)
for most in (1 << 20, LIMITS.decoding):
    found = answer([model], Question("picture"), Path(sys.argv[1]).read_bytes(), replace(LIMITS, decoding=most))
    print(found.status, found.content.decode()[:90])
"""
    command = [sys.executable, "-c", program, str(tmp_path / "large.png")]
    refused, taken = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert refused.startswith("400") and "more memory than there is" in refused
    assert taken.startswith('200 {"width": 5000, "height": 5000')


def test_with_a_token_nothing_is_answered_without_it(model):  # noqa: F811
    guarded, image = client(model, token="a.long-token"), saved("PNG")
    for given in (b"", b"Bearer a.long", b"Basic a.long-token", b"Bearer \xfc"):
        headers = {"authorization": given}
        for address in ("/", "/?token=wrong", "/nowhere"):
            assert guarded.get(address, headers=headers).status_code == 401
        answer = guarded.post("/picture", content=image, headers=headers)
        assert answer.status_code == 401 and "token" in answer.json()["error"]
    assert guarded.get("/?token=a.long-token").status_code == 200
    assert guarded.post("/picture?token=a.long-token", content=image).status_code == 200
    assert guarded.post("/picture", content=image, headers={"authorization": "Bearer a.long-token"}).status_code == 200


@pytest.mark.parametrize(
    ("method", "address", "headers", "status"),
    [
        ("GET", "/nowhere", {}, 404),
        ("GET", "/picture", {}, 405),
        ("PUT", "/", {}, 405),
        ("POST", "/picture", {}, 400),
        ("POST", "/picture", {"host": "rebound.example"}, 400),
        ("GET", "/", {"host": "[::1"}, 400),
        ("POST", "/picture", {"origin": "http://[evil"}, 403),
    ],
)
def test_every_error_is_json(method, address, headers, status, page):
    answer = page.request(method, address, headers=headers)
    assert answer.status_code == status
    assert set(answer.json()) == {"error"} and answer.headers["content-type"] == "application/json"


def test_a_saved_picture_is_the_overlay_of_localize_at_the_original_size(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    answer = page.post("/overlay", params={"prompt": "nodule", "threshold": 0.2}, content=path.read_bytes())
    assert (answer.status_code, answer.headers["content-type"]) == (200, "image/png")
    drawn = cv2.imdecode(np.frombuffer(answer.content, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    (found,), picture = model.localize([path], ["nodule"], 0.2)[0], read_image(path)
    caption = dataclasses.replace(found.caption, facts=[*found.caption.facts, "model tiny"])
    expected = figure(picture, found.placed, caption)
    np.testing.assert_array_equal(drawn, expected)


def test_a_saved_picture_has_the_look_of_the_page(page, model, tmp_path):  # noqa: F811
    path = write_image("jpeg", tmp_path / "a")
    plain = {"prompt": "nodule", "boxes": 0, "strength": 0}

    def film(**asked):
        content = page.post("/overlay", params={**plain, **asked}, content=path.read_bytes()).content
        drawn = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        left = (drawn.shape[1] - 77) // 2
        return drawn[:131, left : left + 77].astype(int)

    grey = read_image(path).astype(int)[:, :, None]
    np.testing.assert_array_equal(film(), np.repeat(grey, 3, axis=2))
    window = np.clip((grey - 100) / 50, 0, 1) * 255
    np.testing.assert_allclose(film(black=100, white=150), np.repeat(window, 3, axis=2), atol=0.51)
    (found,) = model.localize([path], ["nodule"])[0]
    colour = {scale: film(strength=1, lowest=found.cut, highest=scale) for scale in (found.highest, 9 * found.highest)}
    inside = found.heatmap > found.cut
    outside = cv2.dilate(inside.astype(np.uint8), np.ones((5, 5))) == 0
    for drawn in colour.values():
        np.testing.assert_array_equal(drawn[outside], np.repeat(grey, 3, axis=2)[outside])
    assert (np.diff([drawn[inside].mean() for drawn in colour.values()]) < 0).all(), "darker on a longer scale"


def test_two_models_are_asked_by_number_and_have_names_that_differ(model, tmp_path):  # noqa: F811
    other = Model(model.config, initial_variables(model.config.architecture, 4), model.tokenizer, batch_size=4)
    assert [one.name for one in told(model, other).models] == ["tiny (model 1)", "tiny (model 2)"]
    both, data = client(model, other), write_image("jpeg", tmp_path / "a").read_bytes()
    found = {}
    for number, one in ((1, model), (2, other)):
        answer = both.post(f"/localize?prompt=nodule&model={number}", content=data).json()
        found[number] = answer["prompts"][0]["similarity"]
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert found[number] == pytest.approx(one.localize([pixels], ["nodule"])[0][0].similarity, abs=1e-6)
    assert found[1] != found[2]


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("/localize?prompt=edema&model=2", "model must be a number between 1 and 1"),
        ("/localize?prompt=edema&model=0.5", "between 1 and 1"),
        ("/picture?side=nan", "of at least 16"),
        ("/overlay?prompt=edema&prompt=nodule", "2 times prompt; at most 1"),
        ("/overlay?prompt=edema&lowest=1&highest=1", "lowest must be below highest"),
        ("/overlay?prompt=edema&strength=2", "strength must be a number between 0 and 1"),
    ],
)
def test_parameters_out_of_bounds_are_named(address, words, page, tmp_path):
    answer = page.post(address, content=write_image("jpeg", tmp_path / "a").read_bytes())
    assert answer.status_code == 400 and words in answer.json()["error"]


def test_the_picture_has_the_size_that_is_asked(page, tmp_path):
    data = write_image("16-bit png, twice as large as what is shown", tmp_path / "a").read_bytes()
    for side, height in ((192, 144), (1024, 768), (100_000, 1536)):
        assert from_uri(page.post(f"/picture?side={side}", content=data).json()["picture"]).shape[0] == height


def test_pixel_spacing_is_told_of_dicom_files(page, tmp_path):
    dicom_file(tmp_path / "a", smooth_picture(90, 121, 4096).astype(np.uint16), "MONOCHROME2", 12)
    dataset = pydicom.dcmread(tmp_path / "a")
    dataset.PixelSpacing = [0.2, 0.1]  # rows, columns
    dataset.save_as(tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    assert page.post("/localize?prompt=nodule", content=data).json()["mm_per_pixel"] == [0.1, 0.2]
    assert page.post("/localize?prompt=nodule", content=saved("PNG")).json()["mm_per_pixel"] is None
