"""`afloc serve`: what the application answers, what it refuses, and the process around it."""

import base64
import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import anyio
import cv2
import httpx2
import numpy as np
import pytest
from starlette.testclient import TestClient

from afloc_jax.cli import main
from afloc_jax.errors import UserError
from afloc_jax.serve import app as application
from afloc_jax.serve.app import make_app, make_page
from afloc_jax.serve.server import LOCAL_NAMES, is_loopback, listen
from afloc_jax.weights.config import FolderConfig
from data_pipelines.images import read_image
from tests.data_pipelines.test_images import dicom_file
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)

HERE = "http://127.0.0.1:8000"
PHRASES = ["Small left effusion.", "nodule"]


def client(model, **options):  # noqa: F811
    return TestClient(make_app(model, name="tiny", **options), base_url=HERE)


@pytest.fixture
def page(model):  # noqa: F811
    return client(model, hosts=LOCAL_NAMES)


def smooth_picture(height, width, levels):
    """A picture that is not noise: [height, width] float in [0, levels)."""
    coarse = np.random.default_rng(height).random((6, 5), np.float32)
    return (levels - 1) * cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)


def write_image(kind, path):
    if kind == "jpeg":
        cv2.imwrite(str(path.with_suffix(".jpg")), smooth_picture(131, 77, 256).astype(np.uint8))
        return path.with_suffix(".jpg")
    if kind == "16-bit png, twice as large as what is shown":
        cv2.imwrite(str(path.with_suffix(".png")), smooth_picture(1536, 2048, 50_000).astype(np.uint16))
        return path.with_suffix(".png")
    dicom_file(
        path, smooth_picture(90, 121, 4096).astype(np.uint16), "MONOCHROME1", 12
    )  # no suffix, as archives have it
    return path


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
    small = client(model, largest_body=1000)
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
    assert settings["model"] == "tiny"
    assert len(settings["colours"]) == 256
    assert settings["colours"][0] == "#000004" and settings["colours"][-1] == "#fcffa4"  # ends of inferno
    for control in re.findall(r'<input[^>]*id="(\w+)"', text):  # a label, around it or for it
        assert f'for="{control}"' in text or re.search(rf'<label[^>]*><input[^>]*id="{control}"', text), control


def test_a_models_name_cannot_leave_its_place_in_the_page():
    text = make_page({"model": "</script><script>alert(1)//"})
    assert "<script>alert" not in text
    assert json.loads(re.search(r'id="settings">(.*?)</script>', text).group(1))["model"].startswith("</script>")


def test_a_defect_is_told_without_what_was_asked(capfd, tmp_path):
    def localize(*_):
        raise RuntimeError("cannot look for the secret phrase")

    body = write_image("jpeg", tmp_path / "a").read_bytes()
    for debug in (False, True):
        broken = client(SimpleNamespace(localize=localize, config=FolderConfig()), debug=debug)
        answer = broken.post("/localize", params={"prompt": "secret"}, content=body)
        assert answer.status_code == 500
        assert "RuntimeError" in answer.json()["error"] and "secret" not in answer.text
        assert ("secret phrase" in "".join(capfd.readouterr())) is debug


def test_the_page_answers_while_the_model_works_on_one_image_at_a_time(model, tmp_path):  # noqa: F811
    body = write_image("jpeg", tmp_path / "a").read_bytes()
    begun, finish, at_once, most = threading.Event(), threading.Event(), [], []

    def localize(*call):
        at_once.append(call)
        most.append(len(at_once))
        begun.set()
        assert finish.wait(20)
        at_once.pop()
        return model.localize(*call)

    async def run():
        transport = httpx2.ASGITransport(
            make_app(SimpleNamespace(localize=localize, config=FolderConfig()), name="slow")
        )
        async with httpx2.AsyncClient(transport=transport, base_url=HERE) as http:
            done = []

            async def post():
                done.append((await http.post("/localize?prompt=edema", content=body)).status_code)

            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(post)
                assert await anyio.to_thread.run_sync(begun.wait, 20)
                assert (await http.get("/")).status_code == 200
                assert not done
                finish.set()
            return done

    assert anyio.run(run) == [200] * 3
    assert most == [1] * 3


def test_the_command_serves_until_interrupted_and_leaves_nothing_behind(folder, tmp_path):  # noqa: F811
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    image = write_image("dicom", tmp_path / "a")
    root = str(Path(application.__file__).parents[2])
    process = subprocess.Popen(
        [sys.executable, "-m", "afloc_jax", "serve", str(folder), "--port", "0"],
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": os.pathsep.join([root, *sys.path])},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        address = re.search(r"http://127\.0\.0\.1:\d+/", process.stdout.readline()).group()
        with urllib.request.urlopen(address, timeout=20) as answer:
            assert b"For research, not for diagnosis" in answer.read()
        with urllib.request.urlopen(f"{address}localize?prompt=secret", image.read_bytes(), timeout=60) as answer:
            assert json.load(answer)["prompts"][0]["prompt"] == "secret"
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert out + said == ""
    assert not list(work.iterdir()) and not list(temporary.iterdir())


def test_a_port_in_use_is_named_before_the_model_is_loaded(tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", str(tmp_path / "no model"), "--port", port]) == 1
    said = capsys.readouterr().err
    assert f"port {port} of 127.0.0.1 is in use" in said and "--port" in said
    assert said.count("\n") == 1


def test_a_folder_without_a_model_and_a_host_without_an_address_are_named(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--port", "0"]) == 1
    assert "config.json is missing" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"203.0.113.7 is not an address of this machine"):  # one kept for documentation
        listen("203.0.113.7", 0)
    with pytest.raises(SystemExit, match="2"):
        main(["serve", str(tmp_path), "--port", "70000"])


def test_missing_packages_are_named_with_the_way_to_install_them(monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "uvicorn" else find(name))
    assert main(["serve", "model"]) == 2
    assert "serve needs uvicorn; run: pip install -r requirements-serve.txt" in capsys.readouterr().err


def test_only_addresses_of_this_machine_are_loopback():
    assert all(map(is_loopback, ("127.0.0.1", "127.8.0.1", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.4")))
