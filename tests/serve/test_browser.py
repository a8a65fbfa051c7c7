"""The page as a visitor uses it, in Chromium: with the mouse, with the keyboard alone, on a phone.

Needs node, playwright-core (`npm install --prefix FOLDER playwright-core`, AFLOC_PLAYWRIGHT=FOLDER) and a Chromium.
`.ci/run` installs them. AFLOC_PICTURES=FOLDER keeps screenshots.
"""

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from afloc_jax.serve.limits import LIMITS
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)
from tests.serve.test_app import ABOUT, asking, smooth_picture
from tests.serve.test_limits import server

SECONDS = 120


@pytest.fixture(scope="module")
def browser():
    """What the script needs of this machine. Without it the tests skip, but not where AFLOC_PLAYWRIGHT is set."""
    found = {
        "node": shutil.which("node"),
        "chromium": next(filter(None, map(shutil.which, ("chromium", "google-chrome", "chromium-browser"))), None),
        "library": os.environ.get("AFLOC_PLAYWRIGHT"),
    }
    missing = [name for name, place in found.items() if not place]
    if missing and not found["library"]:
        pytest.skip(f"SKIPPED: no {', '.join(missing)}; set AFLOC_PLAYWRIGHT to the folder of playwright-core")
    assert not missing
    return found


@pytest.fixture(scope="module")
def seen(browser, model, tmp_path_factory):  # noqa: F811
    """What the script saw of the page."""
    scratch = tmp_path_factory.mktemp("browser")
    cv2.imwrite(str(scratch / "film.png"), smooth_picture(320, 240, 256).astype(np.uint8))
    ask = asking(model)
    with server(ask, LIMITS, ABOUT, machine="xray-7", token="a.token") as connect:
        given = {
            **browser,
            "profile": str(scratch / "profile"),
            "address": f"http://127.0.0.1:{connect.port}/?token=a.token",
            "image": str(scratch / "film.png"),
            "pictures": os.environ.get("AFLOC_PICTURES", ""),
            "seconds": SECONDS,
        }
        script = Path(__file__).with_name("browser.mjs")
        done = subprocess.run(
            [browser["node"], script, json.dumps(given)], capture_output=True, text=True, timeout=SECONDS + 20
        )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "failed" not in found, found["failed"]
    return found


def test_a_file_is_dropped_and_asked_and_sliders_redraw(seen):
    assert seen["size"] == "240 \u00d7 320 pixels"
    assert seen["moved"]
    assert seen["refused"] == "notes.txt: not an image in a known format"
    assert seen["classes"] == ["pneumonia", "edema"] and seen["set"] == "chest"


def test_what_is_saved_is_what_is_shown(seen):
    assert seen["picture"]["name"] == "film.one.overlay.png" and seen["numbers"]["name"] == "film.one.json"
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(seen["picture"]["data"]), np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape == (320, 240, 3) and np.ptp(picture, axis=-1).max() > 50
    numbers = json.loads(base64.b64decode(seen["numbers"]["data"]))
    assert (numbers["threshold"], numbers["width"], numbers["height"]) == (0.9, 240, 320)
    assert [prompt["given"] for prompt in numbers["prompts"]] == ["small left effusion"]


def test_the_keyboard_alone_is_enough_and_its_focus_is_seen(seen):
    assert seen["byKeys"] == "film.overlay.png"
    assert not seen.get("hiddenFocus")


def test_the_page_fits_a_phone_and_shows_the_map(seen):
    assert seen["phone"] == {"width": 360, "inSight": True, "outside": [], "small": []}


def test_the_page_says_where_images_go_and_asks_no_one_else(seen):
    assert "go to the machine xray-7" in seen["where"] and "not encrypted" in seen["where"]
    assert {request.split("/")[2] for request in seen["requests"] if request.startswith("http")} == {
        seen["requests"][0].split("/")[2]
    }
    assert all(
        request.startswith(("http://127.0.0.1:", "data:image/png", "data:,", "blob:")) for request in seen["requests"]
    )
    assert seen["problems"] == ["Failed to load resource: the server responded with a status of 400 (Bad Request)"]


def test_without_the_token_the_browser_gets_json(seen):
    status, content = seen["withoutToken"]
    assert status == 401 and "token" in content["error"]
