"""The page as a visitor uses it, in Chromium: with the mouse, with the keyboard alone, on a phone.

Needs node, playwright-core and axe-core (`npm install --prefix FOLDER playwright-core axe-core`,
AFLOC_PLAYWRIGHT=FOLDER) and a Chromium.
`.ci/run` installs them. AFLOC_PICTURES=FOLDER keeps screenshots.
"""

import base64
import csv
import io
import json
import os
import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from afloc_jax.inference.outputs import BOX_COLUMNS
from afloc_jax.serve.limits import LIMITS
from tests.inference.conftest import folder, model  # noqa: F401 (fixtures)
from tests.serve.asking import asking, smooth_picture, told
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
    cv2.imwrite(str(scratch / "other.png"), smooth_picture(200, 260, 256).astype(np.uint8))
    with server(asking([model, model]), LIMITS, told(model, model), machine="xray-7", token="a.token") as connect:
        given = {
            **browser,
            "profile": str(scratch / "profile"),
            "address": f"http://127.0.0.1:{connect.port}/?token=a.token",
            "image": str(scratch / "film.png"),
            "other": str(scratch / "other.png"),
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


def decoded(kept):
    return base64.b64decode(kept["data"])


def picture_of(kept):
    return cv2.imdecode(np.frombuffer(decoded(kept), np.uint8), cv2.IMREAD_COLOR)


def test_a_file_is_dropped_and_asked_and_what_is_moved_redraws(seen):
    assert seen["size"] == "film.one.png, 240 \u00d7 320 pixels"
    assert seen["moved"]
    assert "\u201csmall left effusion\u201d" in seen["said"] and ", not calibrated, score " in seen["said"]
    assert seen["refused"] == "notes.txt: not an image in a known format"
    assert seen["classes"] == ["pneumonia", "edema"] and seen["set"] == "chest"
    assert seen["picked"] == "mild pneumonia in the right upper lobe"


def test_pictures_are_saved_at_the_original_size_with_a_caption(seen):
    assert seen["picture"]["name"] == "film.one.overlay.png" and seen["pair"]["name"] == "film.one.compared.png"
    one, two = picture_of(seen["picture"]), picture_of(seen["pair"])
    assert one.shape[0] > 320 and one.shape[1] == 420, "a caption needs that width"
    assert np.ptp(one[:320, 90:330].astype(int), axis=-1).max() > 50
    assert two.shape[1] > 2 * 420


def test_tables_are_those_of_localize(seen, model):  # noqa: F811
    numbers = json.loads(decoded(seen["numbers"]))
    (image,) = numbers["images"]
    assert seen["numbers"]["name"] == "localize.json" and list(numbers)[:3] == ["model", "map", "compatible"]
    assert numbers["model"]["weights_sha256"] == model.weights_sha256
    assert (image["image"], image["width"], image["height"]) == ("film.one.png", 240, 320)
    assert [(prompt["given"], prompt["threshold"]) for prompt in image["prompts"]] == [("small left effusion", 0.9)]
    first, *rows = csv.reader(io.StringIO(decoded(seen["table"]).decode()))
    pixels = smooth_picture(320, 240, 256).astype(np.uint8)
    expected = model.localize([pixels], ["small left effusion", "nodule"], 0.9)[0]
    boxes = [
        [phrase, *map(str, box)]
        for one, phrase in zip(expected, ("small left effusion", "nodule"), strict=True)
        for box in one.boxes
    ]
    assert tuple(first) == BOX_COLUMNS and [[row[1], *row[3:7]] for row in rows] == boxes
    assert [float(row[7]) for row in rows] == pytest.approx([s for one in expected for s in one.scores], rel=1e-4)


def test_two_phrases_and_two_models_are_side_by_side(seen):
    assert seen["captions"] == ["tiny (model 1)", "tiny (model 2)"]
    assert seen["compared"] == ["\u201csmall left effusion\u201d", "\u201cnodule\u201d"]


def test_several_films_are_asked_and_closed(seen):
    assert len(seen["told"]) == 3 and all(told.startswith("score ") for told in seen["told"])
    assert seen["films"] == ["film.png", "other.png"]


def test_film_phrase_map_and_presence_stand_above_the_fold(seen):
    assert seen["fold"] == {"height": 800, "below": []}


def test_axe_finds_no_violation(seen):
    assert seen["violations"] == []


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
