"""The page of a sweep in Chromium: its width, light and dark, what axe-core finds, sorting, links.

Needs what tests/serve/test_browser.py needs, and axe-core in the same folder. AFLOC_PICTURES=FOLDER keeps screenshots.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from afloc_jax.evaluation.sweep.page import sweep_page
from afloc_jax.evaluation.sweep.results import Entry, Results
from afloc_jax.files import Path as FilePath
from tests.evaluation.sweep.test_results import write_run
from tests.serve.test_browser import browser  # noqa: F401 (a fixture)

SECONDS = 120


@pytest.fixture(scope="module")
def seen(browser, tmp_path_factory):  # noqa: F811
    """What the script saw of a page of three settings with long names, two seeds each, of which one failed."""
    workdir = tmp_path_factory.mktemp("sweep")
    entries = []
    for number, iou in enumerate((0.3, 0.6, 0.5, 0.55, 0.1, None)):
        setting, seed = divmod(number, 2)
        folder = FilePath(workdir / f"a_setting_with_quite_a_long_name_{setting}_seed{seed + 1}")
        write_run(folder, iou, loss=1.0 + setting if iou else None)
        if iou:
            (folder / "report").mkdir()
            (folder / "report" / "index.html").write_text("<title>report</title>")
        options = {f"option_{key}": key * 1.5 + setting for key in range(8)}
        overrides = {"optimizer.lr": 10.0**-setting, "model.image.options": options, "seed": seed + 1}
        status = "finished" if iou else "failed"
        entries.append(Entry(folder.name, folder, status, overrides, "exit status 1: a long reason " * 5))
    page = workdir / "sweep.html"
    page.write_text(sweep_page(Results(entries), "levels", ["phantom"]))
    given = {
        **browser,
        "profile": str(workdir / "profile"),
        "pages": [str(page)],
        "pictures": os.environ.get("AFLOC_PICTURES", ""),
        "seconds": SECONDS,
    }
    script = Path(__file__).with_name("browser.mjs")
    done = subprocess.run(
        [browser["node"], script, json.dumps(given)], capture_output=True, text=True, timeout=SECONDS + 20
    )
    found = json.loads(done.stdout) if done.stdout else {}
    assert done.returncode == 0, found.get("failed", done.stderr)
    return found


def test_the_page_fits_a_desk_and_a_phone_in_light_and_dark(seen):
    assert [(one["width"], one["colorScheme"]) for one in seen] == [(1280, "light"), (1280, "dark"), (360, "light")]
    assert all(0 < width <= 1280 - 64 for one in seen[:2] for width in one["tables"])
    assert seen[0]["ground"] != seen[1]["ground"]
    assert not any(one["problems"] for one in seen)


def test_axe_finds_nothing(seen):
    assert [one["violations"] for one in seen] == [[], [], []]


def test_headings_sort_rows_pick_out_lines_and_lead_to_reports(seen):
    def names(shown):
        return [text.split()[0][-1] for text in shown]

    assert names(seen[-1]["before"]) == ["1", "0", "2"]  # by IoU
    assert names(seen[-1]["rising"]) == ["2", "0", "1"]
    assert seen[-1]["chosen"] == 2 * 2  # both seeds, in parallel coordinates and in the curve of the training loss
    assert seen[-1]["target"].endswith("_1_seed1/report/index.html")
