"""The docs: their links lead somewhere, and what the README shows works."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest

from benchmarks import house
from tests import links
from tests.inference.conftest import folder  # noqa: F401 (a fixture)


def test_every_link_of_the_docs_leads_to_a_file_and_a_heading():
    assert list(links.broken(links.ROOT)) == []


def test_no_line_of_the_docs_is_longer_than_120_characters():
    assert house.long_lines(links.ROOT) == []


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[a](docs/there.md#two-words-2nd) [b](#here) [c](https://example.org/x#y) [d](docs)\n# Here\n", None),
        ("[a](docs/gone.md)", "README.md: docs/gone.md: no such file"),
        ("[a](docs/there.md#three)", "README.md: docs/there.md#three: no such heading"),
        ("[a](../outside.md)", "README.md: ../outside.md: no such file"),
        ("```\n[a](gone.md)\n```\n`[b](gone.md)`", None),
        ("[a][1]\n\n[1]: gone.md\n", "README.md: gone.md: no such file"),
    ],
)
def test_links_that_lead_nowhere_are_named(text, complaint, tmp_path):
    root = tmp_path / "repository"
    (root / "docs").mkdir(parents=True)
    (tmp_path / "outside.md").write_text("")
    (root / "docs/there.md").write_text("# One\n## Two words (2nd)\n")
    (root / "README.md").write_text(text)
    assert list(links.broken(root)) == ([complaint] if complaint else [])


def test_tutorials_are_kept_without_results_which_the_site_makes():
    pages = sorted((links.ROOT / "docs/tutorials").glob("*.ipynb"))
    assert len(pages) == 5
    for page in pages:
        cells = json.loads(page.read_text())["cells"]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert code
        assert [cell for cell in code if cell["outputs"] or cell["execution_count"] is not None] == [], page.name


def test_the_python_of_the_readme_runs(folder, tmp_path, monkeypatch):  # noqa: F811
    blocks = re.findall(r"^```python\n(.*?)^```", (links.ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    shutil.copytree(folder, tmp_path / "runs/demo/model")
    cv2.imwrite(str(tmp_path / "chest.png"), np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8))
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), found)
    assert found["maps"][0][0].heatmap.shape == (90, 70)
