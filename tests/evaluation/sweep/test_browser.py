"""The pages of a sweep and of a run in Chromium: their size, light and dark, what axe-core finds, sorting, links.

Needs what tests/serve/test_browser.py needs, and axe-core in the same folder. AFLOC_PICTURES=FOLDER keeps screenshots.
"""

import json
import os
import subprocess
from pathlib import Path

import pytest

from afloc_jax.evaluation.localization.evaluate import evaluate
from afloc_jax.evaluation.localization.settings import LocalizationSettings
from afloc_jax.evaluation.page import write_report
from afloc_jax.evaluation.sweep.page import sweep_page
from afloc_jax.evaluation.sweep.results import Entry, Results
from afloc_jax.files import Path as FilePath
from configs.afloc import get_config
from tests.evaluation.discs import SOURCE, TRAIN, Reader
from tests.evaluation.sweep.test_results import write_run
from tests.serve.test_browser import browser  # noqa: F401 (a fixture)

SECONDS = 120


@pytest.fixture(scope="module")
def seen(browser, tmp_path_factory):  # noqa: F811
    """What the script saw: three settings with long names, two seeds each, of which one failed; then a run's report."""
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
    run = workdir / "run"
    write_run(run)
    (run / "config.json").write_text(json.dumps(get_config().to_dict()))
    settings = LocalizationSettings(bootstrap=10, title="Discs")
    evaluate(Reader(), SOURCE, run / "evaluation" / "discs", settings, prior_source=TRAIN)
    given = {
        **browser,
        "profile": str(workdir / "profile"),
        "pages": [str(page), str(write_report(run))],
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


def test_the_pages_fit_a_desk_and_a_phone_in_light_and_dark(seen):
    wanted = [(1280, "light"), (1280, "dark"), (360, "light")]
    assert [(one["width"], one["colorScheme"]) for one in seen] == 2 * wanted
    assert all(0 < width <= 1280 - 64 for one in seen[:2] for width in one["tables"])
    assert seen[0]["ground"] != seen[1]["ground"] and seen[3]["ground"] != seen[4]["ground"]
    assert not any(one["problems"] for one in seen)
    assert seen[5]["height"] < 6000  # a report on a phone, where its sections are folded


def test_axe_finds_nothing(seen):
    assert [one["violations"] for one in seen] == [[]] * 6


def test_headings_sort_rows_pick_out_lines_and_lead_to_reports(seen):
    def names(shown):
        return [text.split()[0][-1] for text in shown]

    assert names(seen[2]["before"]) == ["1", "0", "2"]  # by IoU
    assert names(seen[2]["rising"]) == ["2", "0", "1"]
    assert seen[2]["chosen"] == 2 * 2  # both seeds, in parallel coordinates and in the curve of the training loss
    assert seen[2]["target"].endswith("_1_seed1/report/index.html")
