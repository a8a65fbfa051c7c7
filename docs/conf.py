"""The documentation site: `sphinx-build -W docs runs/site` (pip install -r requirements-docs.txt).

AFLOC_NOTEBOOKS names the tutorials to execute, such as "1_own_data,2_evaluate", or is "all". The others are shown
without their results.
"""

import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TUTORIALS = {page.stem for page in (ROOT / "docs/tutorials").glob("*.ipynb")}
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = str(ROOT)  # of the notebooks, which run in their own folder

from afloc_jax import __version__  # noqa: E402

project = "afloc_jax"
author = "the afloc_jax authors"
copyright = "the afloc_jax authors, Apache-2.0"
release = __version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["tutorials/*/**"]  # what notebooks write
myst_heading_anchors = 4
napoleon_numpy_docstring = False
autodoc_typehints = "signature"  # shapes are there
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
copybutton_exclude = ".linenos, .gp, .go"

named = os.environ.get("AFLOC_NOTEBOOKS", "")
executed = TUTORIALS if named == "all" else set(filter(None, named.split(",")))
if executed - TUTORIALS:
    raise SystemExit(f"AFLOC_NOTEBOOKS: no tutorial {sorted(executed - TUTORIALS)}; there are {sorted(TUTORIALS)}")
nb_execution_mode = "force" if executed else "off"
nb_execution_excludepatterns = [f"tutorials/{name}.ipynb" for name in sorted(TUTORIALS - executed)]
nb_execution_timeout = 600
nb_execution_raise_on_error = True
nb_merge_streams = True

default_role = "code"  # docstrings have `names` as Markdown has them


def plain(app, what, name, obj, options, lines: list[str]) -> None:
    """Makes reStructuredText of a docstring, which is plain text with `names`.

    Indented paragraphs are formulas and tables and keep their lines. Elsewhere the signs of formulas, such as |w| and
    a * b, are not marks.
    """
    if lines and lines[0].startswith("Alias for field number"):  # what a NamedTuple says of each of its fields
        lines.clear()
    written: list[str] = []
    block = before = 0  # the indentation of the indented paragraphs, 0 outside of them; that of the line before
    for line in lines:
        depth = len(line) - len(line.lstrip())
        if line.strip():
            if block and depth < block:
                block = 0
            if not block and depth > before and written and not written[-1]:
                block = depth
                written += [" " * before + "::", ""]
            before = depth
        written.append(line if block else re.sub(r"(`[^`]*`)|([|*])", lambda m: m[1] or "\\" + m[2], line))
    lines[:] = written


def short_types(app, what, name, obj, options, signature: str | None, returned: str | None):
    """Shows arrays as the source writes them: Float[Array, 'B D']."""
    return tuple(
        text and re.sub(r"\b(?:jaxlib\._jax|numpy)\.(?=Array|ndarray)", "", text) for text in (signature, returned)
    )


def without_lists(app, pagename, templatename, context, doctree) -> None:
    """Makes blocks of the parameters of a signature on several lines, which Sphinx writes as a list without terms.

    Screen readers announce such a list as broken; axe-core counts it as serious.
    """
    context["body"] = re.sub(r"<dl>\n((?:<dd>.*</dd>\n)+)</dl>", _blocks, context.get("body", ""))


def _blocks(found: re.Match[str]) -> str:
    lines = found[1].replace("<dd>", '<span style="display: block; margin-left: 2rem">').replace("</dd>", "</span>")
    return f"<span>\n{lines}</span>"


def setup(app) -> None:
    app.connect("html-page-context", without_lists)
    app.connect("autodoc-process-signature", short_types)
    app.connect("autodoc-process-docstring", plain, priority=400)  # before napoleon's at 500


html_theme = "furo"
html_title = "afloc_jax"
html_static_path = ["_static"]
html_js_files = ["keyboard.js"]
