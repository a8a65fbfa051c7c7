"""The page as one document, put together from the files of `static/`."""

import json
from collections.abc import Mapping
from importlib.resources import files

from afloc_jax.settings import Json

# One script after the other; each uses those before it, and `main.js` begins.
SCRIPTS = ("tools", "server", "films", "phrases", "maps", "view", "saving", "classes", "main")


def make_page(settings: Mapping[str, Json]) -> str:
    """The page as one HTML document, with its style, its scripts and the settings of the scripts."""
    folder = files("afloc_jax.serve") / "static"
    page, style = ((folder / f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css"))
    script = "\n".join((folder / f"{name}.js").read_text(encoding="utf-8") for name in SCRIPTS)
    known = json.dumps(settings).replace("<", "\\u003c")  # "<" could end the script element
    return page.replace("{{style}}", style).replace("{{script}}", script).replace("{{settings}}", known)
